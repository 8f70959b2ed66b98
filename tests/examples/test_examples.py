"""The examples, run as users run them."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import pytest

from helios_serve.options.edge import EdgeOptions
from helios_serve.options.server import ServerConfig
from tests.support.api import frames_of
from tests.support.browser import running_browser
from tests.support.quick_server import quick_server

EXAMPLES = Path(__file__).parents[2] / "examples"
PATIENCE = 180.0
TESTED = {
    "batch.py",
    "list_cells.py",  # in tests/deploy/test_cells.py
    "openai_client.py",
    "ray_workers.sh",
    "realtime_client.py",
    "streaming_page.html",
}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    edge = EdgeOptions(allowed_origins=("*",))  # for the page, which comes from a file
    with quick_server(tmp_path_factory.mktemp("server"), ServerConfig(edge=edge)) as started:
        yield started


def output_of(command: list[str], folder: Path, **environment: str) -> str:
    """Run an example in `folder`, and return its output. Asserts that it succeeds."""
    with subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=PATIENCE)
        finally:
            process.terminate()  # so that it ends what it has started
    assert process.returncode == 0, output
    return output


def python(name: str, *arguments: str) -> list[str]:
    return [sys.executable, str(EXAMPLES / name), *arguments, "--size", "64x64"]


def test_every_example_is_tested_and_says_how_to_run_it() -> None:
    found = {path.name: path for path in EXAMPLES.iterdir() if path.is_file()}
    assert found.keys() == TESTED
    for name, path in found.items():
        assert name in path.read_text()[:1000], f"{name} does not say how to run it"


def test_openai_client(url: str, tmp_path: Path) -> None:
    command = python("openai_client.py", "a dog runs", "--url", url, "--seconds", "1")
    assert "video.mp4: 1 s of 64x64" in output_of(command, tmp_path)
    assert len(frames_of((tmp_path / "video.mp4").read_bytes())) == 24


def test_realtime_client(url: str, tmp_path: Path) -> None:
    address = url.replace("http", "ws", 1)
    command = python("realtime_client.py", "--url", address, "--num-frames", "165")
    output = output_of(command, tmp_path)
    assert "prompt switch started" in output
    assert "session.mp4: 5 chunks" in output
    assert len(frames_of((tmp_path / "session.mp4").read_bytes())) == 165


def test_batch(url: str, tmp_path: Path) -> None:
    prompts = ("a calm sea", "a dog runs")
    output_of(python("batch.py", *prompts, "--url", url, "--seconds", "1"), tmp_path)
    videos = sorted((tmp_path / "videos").iterdir())
    assert [path.name for path in videos] == ["video-1.mp4", "video-2.mp4"]
    assert [len(frames_of(path.read_bytes())) for path in videos] == [24, 24]


def test_streaming_page_names_routes_that_exist(url: str) -> None:
    page = (EXAMPLES / "streaming_page.html").read_text()
    for path in ("stream", "hls/index.m3u8"):
        assert f'["{path}", ' in page
        assert f"/v1/videos/{{video_id}}/{path}" in routes(url)


def routes(url: str) -> set[str]:
    return set(httpx.get(f"{url}/openapi.json").json()["paths"])


@pytest.mark.slow
def test_streaming_page(url: str) -> None:
    body = {"prompt": "a long river", "size": "64x64", "num_frames": 66}
    video = httpx.post(f"{url}/v1/videos", json=body).json()["id"]
    page = (EXAMPLES / "streaming_page.html").as_uri()
    with running_browser() as browser:
        shown = browser.new_page()
        shown.goto(f"{page}?server={url}&video={video}")
        shown.get_by_text(re.compile(r"Ended at 2\.[78] s")).wait_for(timeout=1000 * PATIENCE)
        shown.goto(f"{page}?server={url}&video=none")
        shown.get_by_text("has no video none that can be played").wait_for()


@pytest.mark.slow
def test_ray_workers(tmp_path: Path) -> None:
    output = output_of(
        ["bash", str(EXAMPLES / "ray_workers.sh")],
        tmp_path,
        PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        PORT=str(free_port()),
        RAY_PORT=str(free_port()),
        RAY_USAGE_STATS_ENABLED="0",
        SIZE="64x64",
    )
    last = output.rpartition("ray-1 is draining")[2]
    assert [f"ray-{number}" in last for number in range(3)] == [True, False, True], output
    assert len(frames_of((tmp_path / "sea.mp4").read_bytes())) == 144


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
