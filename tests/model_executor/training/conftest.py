"""A tiny training, which the tests of stages and gates share."""

import pytest

from helios_serve.model_executor.training.recipe import tiny_recipe
from helios_serve.model_executor.training.training import Training


@pytest.fixture(scope="session")
def training(tmp_path_factory: pytest.TempPathFactory) -> Training:
    """All stages, without interruption. Its models have learned next to nothing."""
    training = Training(tmp_path_factory.mktemp("training"), tiny_recipe())
    for stage in training.makers:
        assert training.run(stage)
    return training
