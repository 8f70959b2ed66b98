"""Videos without an end on a server as users start it: what they take stays bounded."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from tests.support.api import error_of, wait_until_ready
from tests.support.realtime import realtime_client
from tests.support.server import Server, running_server

pytestmark = [pytest.mark.slow, pytest.mark.alone]

WINDOW, IDLE = 8, 15
PATIENCE = 300.0
SMALL: dict[str, Any] = {"prompt": "waves", "size": "64x64", "steps": [1, 1, 1]}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("endless") / "data"
    flags = ("--device", "cpu", "--endless-window", f"{WINDOW}", "--endless-idle", f"{IDLE}")
    with running_server(folder, "nano", *flags) as started:
        yield started


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=120) as made:
        wait_until_ready(made, PATIENCE)
        yield made


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def resident(server: Server) -> int:
    """Bytes of the server's process."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if "VmRSS" in line))


def test_disk_and_memory_stay_bounded_and_viewers_find_the_window(
    server: Server, http: httpx.Client
) -> None:
    """Until its last viewer has gone."""
    video = http.post("/v1/videos", json=SMALL | {"endless": True}).json()
    assert (video["num_frames"], video["num_chunks"]) == (None, None)
    folder, name = server.folder / "segments" / video["id"], f"/v1/videos/{video['id']}"

    def done() -> int:
        http.get(f"{name}/hls/index.m3u8")  # a viewer
        return int(http.get(name).json()["chunks_done"])

    wait_for(lambda: done() >= 60)
    before = resident(server)
    wait_for(lambda: done() >= 300)
    assert resident(server) - before < 20_000_000
    assert len(list(folder.iterdir())) <= 2 * WINDOW + 3
    lines = http.get(f"{name}/hls/index.m3u8").text.splitlines()
    segments = [line for line in lines if line.endswith(".m4s")]
    assert len(segments) == WINDOW
    assert f"#EXT-X-MEDIA-SEQUENCE:{segments[0].removesuffix('.m4s')}" in lines
    assert http.get(f"{name}/hls/{segments[0]}").status_code == 200
    with http.stream("GET", f"{name}/stream?from_chunk=0") as stream:
        assert next(stream.iter_bytes())
    wait_for(lambda: http.get(name).json()["status"] == "completed")  # nobody looked any more
    ended = http.get(name).json()
    assert ended["error"] is None
    assert http.get(f"{name}/content").status_code == 200


def test_a_session_without_a_length_lasts_until_it_is_stopped(
    server: Server, http: httpx.Client
) -> None:
    with realtime_client(server.url) as client:
        client.say("session.start", **SMALL)
        started = client.started()
        assert started["config"]["num_frames"] is None
        for chunk in range(6):
            assert client.hear_chunk().metadata["generation_chunk_index"] == chunk
        client.say("session.stop")
        _, messages = client.rest()
    assert messages[-1]["stopped"]
    wait_for(
        lambda: http.get(f"/v1/videos/{started['request_id']}").json()["status"] == "completed"
    )


def test_what_waits_for_an_end_refuses_it(http: httpx.Client) -> None:
    body = SMALL | {"endless": True}
    for path, fields in (("/v1/videos/sync", {}), ("/v1/videos", {"seconds": 2})):
        answer = http.post(path, json=body | fields)
        assert answer.status_code == 400
        assert error_of(answer)["param"] == "endless"
