"""Executors, and what the engine is to make with them."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from torch import Tensor

from helios_serve.store.video_store import VideoStore
from tests.support.models import load_model
from tests.support.nano_cache import nano_cache
from tests.support.ray_cluster import (
    RayCluster,  # first, since it sets what Ray reads when it is imported
)
from tests.support.service import CASES
from tests.support.videos import run_sessions


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


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with nano_cache(tmp_path_factory):
        yield


@pytest.fixture
def store(tmp_path: Path) -> Iterator[VideoStore]:
    with closing(VideoStore(tmp_path / "store")) as opened:
        yield opened
