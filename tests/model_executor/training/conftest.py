"""Fixture: a tiny training, shared by the tests of stages and gates."""

import pytest

from helios_serve.model_executor.training.recipe import tiny_recipe
from helios_serve.model_executor.training.training import Training


@pytest.fixture(scope="session")
def training(tmp_path_factory: pytest.TempPathFactory) -> Training:
    """Run all stages without interruption. The models have learned almost nothing."""
    training = Training(tmp_path_factory.mktemp("training"), tiny_recipe())
    for stage in training.makers:
        assert training.run(stage)
    return training
