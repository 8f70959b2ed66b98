"""Executors, and what the engine is to make with them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from models import load_model
from ray_cluster import RayCluster  # first, since it sets what Ray reads when it is imported
from service import CASES
from torch import Tensor
from videos import run_sessions


@pytest.fixture(scope="session")
def folder(checkpoints: dict[str, Path]) -> Path:
    return checkpoints["distilled"]


@pytest.fixture(scope="session")
def expected(folder: Path) -> dict[str, Tensor]:
    """The undisturbed latents of every case."""
    model = load_model(str(folder))
    requests = [case.request(name) for name, case in CASES.items()]
    return run_sessions(model, requests, batch_invariant=True)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[RayCluster]:
    cluster = RayCluster()
    yield cluster
    cluster.shutdown()
