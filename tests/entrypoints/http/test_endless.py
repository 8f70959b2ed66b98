"""Videos without an end over HTTP, in a server that is a cell: what they take stays bounded."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from helios_serve.options.server import ServerConfig
from helios_serve.service.ids import cell_of
from tests.support.api import error_of, frames_of, wait_until_ready
from tests.support.quick_server import quick_server
from tests.support.realtime import realtime_client
from tests.support.server import Server, running_server
from tests.support.sse import events_in

WINDOW, IDLE = 8, 15
PATIENCE = 300.0
SMALL: dict[str, Any] = {"prompt": "waves", "size": "64x64", "steps": [1, 1, 1]}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    config = ServerConfig(kept_chunks=WINDOW, cell="here")
    with quick_server(tmp_path_factory.mktemp("quick"), config) as started:
        yield started


@pytest.fixture
def quick(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60) as made:
        yield made


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


@pytest.mark.slow
@pytest.mark.alone
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

    wait_for(lambda: done() >= 40)
    before = resident(server)
    wait_for(lambda: done() >= 160)
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
    url: str, quick: httpx.Client
) -> None:
    with realtime_client(url) as client:
        client.say("session.start", **SMALL)
        started = client.started()
        assert started["config"]["num_frames"] is None
        for chunk in range(6):
            assert client.hear_chunk().metadata["generation_chunk_index"] == chunk
        client.say("session.stop")
        _, messages = client.rest()
    assert messages[-1]["stopped"]
    name = f"/v1/videos/{started['request_id']}"
    wait_for(lambda: quick.get(name).json()["status"] == "completed")


def test_its_window_slides_for_all_viewers(url: str, quick: httpx.Client) -> None:
    video = quick.post("/v1/videos", json=SMALL | {"endless": True}).json()
    assert (video["num_frames"], video["num_chunks"]) == (None, None)
    name = f"/v1/videos/{video['id']}"
    wait_for(lambda: quick.get(name).json()["chunks_done"] >= 2 * WINDOW + 4)
    lines = quick.get(f"{name}/hls/index.m3u8").text.splitlines()
    segments = [line for line in lines if line.endswith(".m4s")]
    assert len(segments) == WINDOW
    first = int(segments[0].removesuffix(".m4s"))
    assert f"#EXT-X-MEDIA-SEQUENCE:{first}" in lines
    assert quick.get(f"{name}/hls/{segments[0]}").status_code == 200
    assert quick.get(f"{name}/hls/0.m4s").status_code == 404
    with quick.stream("GET", f"{name}/stream?from_chunk=0") as stream:
        assert next(stream.iter_bytes())  # begins with the oldest chunk that is kept
    with quick.stream("GET", f"{name}/events", headers={"last-event-id": "0"}) as stream:
        event = next(item for item in events_in(stream.iter_lines()) if item.number)
        assert event.data["chunk"] >= first
        assert event.data["num_chunks"] is None
    with realtime_client(url) as client:
        client.say("session.resume", session_id=video["id"], from_chunk=0)
        resumed = client.started()["from_chunk"]
        assert resumed >= first
        assert client.hear_chunk().metadata["generation_chunk_index"] >= resumed
    assert quick.post(f"{name}/cancel").json()["status"] == "completed"
    ended = quick.get(name).json()
    assert (ended["error"], ended["progress"]) == (None, 100)
    assert quick.get(f"{name}/hls/index.m3u8").text.endswith("#EXT-X-ENDLIST\n")
    kept = frames_of(quick.get(f"{name}/content").content)
    assert len(kept) == 33 * 2 * WINDOW
    forked = quick.post(f"{name}/fork", json={"prompts": [None], "seconds": 1})
    assert forked.status_code == 200, forked.text
    child = forked.json()["data"][0]
    assert child["num_frames"] == 33 * ended["chunks_done"] + 24
    wait_for(lambda: quick.get(f"/v1/videos/{child['id']}").json()["status"] == "completed")


def test_what_waits_for_an_end_refuses_it(quick: httpx.Client) -> None:
    body = SMALL | {"endless": True}
    for path, fields in (("/v1/videos/sync", {}), ("/v1/videos", {"seconds": 2})):
        answer = quick.post(path, json=body | fields)
        assert answer.status_code == 400
        assert error_of(answer)["param"] == "endless"


def test_a_cell_names_itself_and_others(quick: httpx.Client) -> None:
    """In ids, in every response, and where a request belongs elsewhere."""
    made = quick.post("/v1/videos", json=SMALL | {"num_frames": 33})
    assert (made.headers["x-helios-cell"], cell_of(made.json()["id"])) == ("here", "here")
    digest = 32 * "0"
    for path in (f"videos/video_there_{digest}", f"files/file-there-{digest}",
                 f"batches/batch_there_{digest}"):  # fmt: skip
        answer = quick.get(f"/v1/{path}")
        assert (answer.status_code, error_of(answer)["code"]) == (421, "other_cell")
    assert quick.get(f"/v1/videos/video_here_{digest}").status_code == 404
    assert quick.get(f"/v1/videos/video_{digest}").status_code == 404
    for path, headers in (("", {"x-helios-cell": "there"}), ("?cell=there", {})):
        answer = quick.get(f"/v1/videos{path}", headers=headers)
        assert (answer.status_code, answer.headers["x-helios-cell"]) == (421, "here")
        assert error_of(answer)["code"] == "other_cell"
    assert quick.get("/v1/videos", params={"cell": "here"}).status_code == 200
