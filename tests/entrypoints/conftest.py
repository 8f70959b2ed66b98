"""Fixtures: a real server, shared by tests that do not change it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from tests.support.api import SHORT, openai
from tests.support.lora_files import write_lora
from tests.support.models import load_model
from tests.support.nano_cache import nano_cache
from tests.support.server import Server, running_server

FLAGS = ("--device", "cpu", "--batch-invariant", "--allowed-media-domains", "localhost,*.invalid")


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with nano_cache(tmp_path_factory):
        yield


@pytest.fixture(scope="session")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that receives the server's standard error."""
    return tmp_path_factory.mktemp("log") / "stderr"


@pytest.fixture(scope="session")
def style(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter of nano."""
    transformer = load_model("nano").transformer
    assert transformer is not None
    return write_lora(tmp_path_factory.mktemp("lora") / "style.safetensors", transformer)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, log: Path, style: Path) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server") / "data"
    loras = ("--lora-modules", f"style={style}")
    with running_server(folder, "nano", *FLAGS, *loras, log=log) as started:
        yield started


@pytest.fixture(scope="session")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as made:
        yield made


@pytest.fixture(scope="session")
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=120) as made:
        yield made


@pytest.fixture(scope="session")
def finished(client: openai.OpenAI) -> Any:
    """A complete video of 40 frames."""
    video = client.videos.create_and_poll(prompt="a dog runs", poll_interval_ms=100, **SHORT)
    assert video.status == "completed"
    return video
