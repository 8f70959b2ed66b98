"""Shutdown of a server, and errors at its start."""

import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2 as httpx
import pytest

from helios_serve.entrypoints.cli.main import main
from tests.support.api import error_of, frames_of
from tests.support.server import running_server

PATIENCE = 120
"""Seconds after which a server counts as hung."""
FLAGS = ("nano", "--device", "cpu", "--batch-invariant", "--drain-timeout", str(PATIENCE))
SLOW = {"prompt": "waves", "num_frames": 99, "size": "64x64", "seed": 1, "steps": [60, 60, 60]}
"""A video whose chunks take seconds each."""


@pytest.mark.slow
def test_a_server_comes_to_rest_at_a_chunk_edge(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with (
        running_server(folder, *FLAGS) as server,
        httpx.Client(base_url=server.url, timeout=60) as http,
        ThreadPoolExecutor(1) as pool,
    ):
        video = http.post("/v1/videos", json=SLOW).json()["id"]
        path = f"/v1/videos/{video}"
        reading = pool.submit(http.get, f"{path}/stream")
        while http.get(path).json()["progress"] < 30:  # the first chunk is delivered
            time.sleep(0.02)
        server.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE
        while (health := http.get("/health")).status_code == 200:
            assert time.monotonic() < deadline
        assert health.json()["status"] == "draining"
        refused = http.post("/v1/videos", json=SLOW)
        assert (refused.status_code, error_of(refused)["code"]) == (503, "shutting_down")
        assert refused.headers["retry-after"]
        assert server.process.wait(PATIENCE) == 0
        assert len(frames_of(reading.result().content)) == 66
    with (
        running_server(folder, *FLAGS) as server,
        httpx.Client(base_url=server.url, timeout=60) as http,
    ):
        assert len(frames_of(http.get(f"{path}/stream").content)) == 99
        whole = frames_of(http.get(f"{path}/content").content)
        again = http.post("/v1/videos/sync", json=SLOW)
        assert (whole == frames_of(again.content)).all()
        third = http.post("/v1/videos", json=SLOW).json()["id"]
        while http.get(f"/v1/videos/{third}").json()["progress"] < 10:
            time.sleep(0.02)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(PATIENCE) == 130


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--port", "{port}"), "expected a free address: Address already in use"),
        (("no-such-folder/model",), "no-such-folder/model"),
        pytest.param(("--device", "cuda:99"), "cuda:99", marks=pytest.mark.slow),
        (("--retention", "7"), "got '7', expected a number with a unit (s, m, h, d or w)"),
        (("--tenants", "none.toml"), "none.toml"),
    ],
)
def test_what_keeps_a_server_from_starting_is_one_line(
    flags: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = [flag.format(port=port) for flag in flags]
        try:
            status: object = main(["serve", "--port", "0", *words])
        except SystemExit as end:  # argparse's own errors
            status = end.code
    assert status == 2
    said = capsys.readouterr().err
    error = "helios-serve: error: "
    (line,) = (line for line in said.splitlines() if line.startswith(error))
    assert message in line
    assert "Traceback" not in said
