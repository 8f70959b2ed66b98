"""Checkpoints and models that tests share.

Nothing here imports torch before a test needs it, because tests of plain Python do without.
"""

import os
import signal
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

from tests.support.tries import FULL, USUAL

if TYPE_CHECKING:
    from helios_serve.model_executor.loader import LoadedModel
    from tests.support.objects import Bucket

# Read when huggingface_hub is imported: no test leaves this machine.
os.environ["HF_HUB_OFFLINE"] = "1"
# Read when torch is imported, here and in every process that a test starts. Several of these
# processes share the cores, and OpenMP threads that wait for each other by turning take most of
# the time then.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tests with two threads let them sleep, not spin, while they wait for each other.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# A shell that runs the tests in the background lets them ignore Ctrl-C, and so would every process
# that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No random test fails because the machine is busy. `tries` reads the name of the profile, which
# `--hypothesis-profile=full` sets.
settings.register_profile(USUAL, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile(FULL, settings.get_profile(USUAL))
settings.load_profile(USUAL)

ModelLoader = Callable[..., "LoadedModel"]
TOGETHER = ("tests/model_executor/training/",)
"""Folders of which one pytest process runs all tests, which share a fixture of many seconds."""
DEAD_WORKERS = pytest.StashKey[list[str]]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse `alone` without `slow`: `make test` would run the test among others."""
    for item in items:
        if item.get_closest_marker("alone") and not item.get_closest_marker("slow"):
            raise pytest.UsageError(f"{item.nodeid}: got the marker alone, expected slow as well")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """Return a scheduler for `--dist loadfile` that takes each folder of TOGETHER as one file."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class LoadFolderScheduling(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            whole = (folder for folder in TOGETHER if nodeid.startswith(folder))
            return next(whole, nodeid.split("::")[0])

    return LoadFolderScheduling(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object | None) -> None:
    """Remember each pytest-xdist worker that died; `error` is None for one that finished."""
    if error is not None:
        node.config.stash.setdefault(DEAD_WORKERS, []).append(node.gateway.id)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run if a worker died, even if that was after its last test."""
    if session.config.stash.get(DEAD_WORKERS, []):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny checkpoints by variant."""
    from tests.support.tiny_checkpoint import write_tiny_checkpoints

    return write_tiny_checkpoints(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def latent_model() -> ModelLoader:
    """Loads a checkpoint once for each set of options of `load_model`, without decoding."""
    from tests.support.models import blank_frames, load_model, loaded

    @cache
    def load(folder: Path, **options: Any) -> "LoadedModel":
        model = load_model(str(folder), **options)
        loaded(model.vae).render = blank_frames  # type: ignore[assignment, method-assign]
        return model

    return load


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The URL of a real S3 server, in which each test has a prefix of its own."""
    from tests.support.objects import running_s3

    with running_s3() as url:
        yield url


@pytest.fixture
def bucket(s3: str, monkeypatch: pytest.MonkeyPatch) -> "Bucket":
    """A prefix of the S3 server. Its credentials are in the environment."""
    from tests.support.objects import CREDENTIALS, new_bucket

    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    return new_bucket(s3)
