"""A server whose workers cannot be started: it reports that, keeps trying, and may exit."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx2 as httpx
import pytest

from helios_serve.entrypoints.cli.main import main
from tests.support.server import Server, running_server


def kill_workers_until(server: Server, reached: Callable[[], bool], seconds: float = 120.0) -> None:
    """Kill all workers, also new ones, until `reached`."""
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline
        for pid in server.workers:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


@pytest.mark.slow
def test_an_outage_is_told_and_ends_when_a_worker_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("nano", "--device", "cpu")

    def is_listed_as_failed() -> bool:
        """While it waits to be restarted: for one second, then two, four and so on."""
        assert main(["workers", "list", "--data-dir", str(tmp_path / "data")]) == 0
        return "failed" in capsys.readouterr().out

    with (
        running_server(tmp_path / "data", *flags) as server,
        httpx.Client(base_url=server.url, timeout=60) as http,
    ):
        body = {"prompt": "waves", "size": "64x64", "num_frames": 33}
        assert http.post("/v1/videos/sync", json=body).status_code == 200
        kill_workers_until(server, lambda: http.get("/health").json()["status"] == "no_workers")
        kill_workers_until(server, is_listed_as_failed)
        health = http.get("/health").json()
        assert (health["status"], health["workers"]) == ("no_workers", {"nano": 0})
        assert health["errors"]["nano"].startswith("no worker can encode: ")
        outage = next(
            line
            for line in http.get("/metrics").text.splitlines()
            if line.startswith("helios:outage_seconds{")
        )
        assert float(outage.rpartition(" ")[2]) > 0
        waiting = http.post("/v1/videos/sync", json=body)  # when a worker has started
        assert waiting.status_code == 200
        assert http.get("/health").json()["status"] == "ok"


@pytest.mark.slow
def test_a_server_ends_when_it_has_no_workers_for_too_long(tmp_path: Path) -> None:
    flags = ("nano", "--device", "cpu", "--exit-without-workers", "2")
    log = tmp_path / "log"
    with running_server(tmp_path / "data", *flags, log=log) as server:
        body = {"prompt": "waves", "size": "64x64", "num_frames": 1}
        answer = httpx.post(f"{server.url}/v1/videos/sync", json=body, timeout=60)
        assert answer.status_code == 200
        kill_workers_until(server, lambda: server.process.poll() is not None)
        assert server.process.returncode == 2
    assert "(--exit-without-workers)" in log.read_text()
