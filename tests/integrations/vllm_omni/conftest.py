"""One server for most tests; those that end it have their own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import omni_server
from tests.support.omni_server import STREAMING, OmniServer, deploy_config


@pytest.fixture(scope="session")
def environment() -> Path:
    return omni_server.environment()


@pytest.fixture(scope="session")
def config(environment: Path) -> str:
    """The path of the package's deploy config."""
    return deploy_config(environment / "bin")


@pytest.fixture(scope="session")
def server(
    environment: Path,
    checkpoints: dict[str, Path],
    config: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[OmniServer]:
    """A server with the flags of the README and a tiny distilled checkpoint."""
    log = tmp_path_factory.mktemp("vllm-omni") / "log"
    flags = ("--deploy-config", config, *STREAMING)
    model = checkpoints["distilled"]
    with omni_server.omni_server(environment, model, log, *flags) as running:
        yield running
