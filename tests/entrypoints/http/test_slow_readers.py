"""Clients that do not read their responses, on real sockets, against a real server."""

import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2 as httpx
import numpy as np
import pytest
from websockets.sync.client import connect

from helios_serve.media.mp4 import encode_chunk
from helios_serve.messages import Snapshot
from helios_serve.options.sampling import SamplingParams
from helios_serve.store.snapshots import ResumePoint
from helios_serve.store.video_store import VideoStore
from helios_serve.video_request import Frames, VideoRequest
from tests.support.api import frames_of
from tests.support.realtime import Chunk, RealtimeClient, data_of
from tests.support.server import Server, running_server

pytestmark = pytest.mark.slow

STORED = "video_stored"
CHUNKS, FPS = 16, 24
SIZE = (256, 128)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a video of noise, which is large."""
    folder = tmp_path_factory.mktemp("slow") / "data"
    width, height = SIZE
    rng = np.random.default_rng(1)
    params = SamplingParams(width=width, height=height, num_frames=33 * CHUNKS, fps=FPS)
    request = VideoRequest(request_id=STORED, prompt="noise", model="nano-random", params=params)
    store = VideoStore(folder)
    store.accept(request, num_chunks=CHUNKS)
    for chunk in range(CHUNKS):
        noise = rng.integers(0, 256, (33, height, width, 3), np.uint8).tobytes()
        segment = encode_chunk(Frames(noise, 33, height, width), chunk=chunk, fps=FPS)
        nothing = Snapshot(chunk + 1, b"", b"", b"", 19, "float32", height, width)
        assert store.commit(STORED, chunk, segment, ResumePoint(nothing))
    store.finish(STORED, "completed")
    store.close()
    return folder


@pytest.fixture(scope="module")
def server(stored: Path) -> Iterator[Server]:
    """A server whose chunks are larger than the buffers of sockets."""
    with running_server(stored, "nano-random", "--device", "cpu", "--batch-invariant") as started:
        yield started


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as made:
        yield made


def narrow_socket(server: Server) -> socket.socket:
    """Return a connected socket with a tiny receive buffer."""
    address = urlsplit(server.url)
    assert address.hostname is not None
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.connect((address.hostname, address.port or 80))
    return made


def resident(server: Server) -> int:
    """Return the server's resident memory, in bytes."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    match = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert match is not None
    return 1024 * int(match[1])


def body_of(answer: bytes) -> bytes:
    """Return the body of a chunked response."""
    _, _, rest = answer.partition(b"\r\n\r\n")
    body = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        body += rest[: int(size, 16)]
        rest = rest[int(size, 16) + 2 :]
    return body


def test_readers_that_do_not_read_take_a_few_chunks_of_memory_and_hold_up_nobody(
    server: Server, http: httpx.Client
) -> None:
    """Their whole responses would be twice as large, and larger for longer videos."""
    content = http.get(f"/v1/videos/{STORED}/stream").content
    readers = 40
    before = resident(server)
    with ExitStack() as opened:
        stalled = [opened.enter_context(narrow_socket(server)) for _ in range(readers)]
        for reader in stalled:
            reader.sendall(b"GET /v1/videos/%s/stream HTTP/1.1\r\n" % STORED.encode())
            reader.sendall(b"Host: helios\r\nConnection: close\r\n\r\n")
        body = {"prompt": "waves", "num_frames": 33, "size": "64x64"}
        assert http.post("/v1/videos/sync", json=body).status_code == 200
        assert http.get(f"/v1/videos/{STORED}/stream").content == content
        grown = resident(server) - before
        assert grown < readers * len(content) / 2
        answer = b""
        while part := stalled[-1].recv(1 << 20):
            answer += part
    assert body_of(answer) == content
    assert len(frames_of(content)) == 33 * CHUNKS


def test_a_session_waits_for_a_client_that_does_not_read_and_nobody_waits_with_it(
    server: Server, http: httpx.Client
) -> None:
    address = f"{server.url.replace('http', 'ws', 1)}/v1/realtime/video"
    with connect(address, sock=narrow_socket(server), max_size=None, max_queue=1) as stalled:
        client = RealtimeClient(stalled)
        video = client.start(num_frames=3300, seed=5, max_lead_chunks=1)
        made = still(http, video)
        assert made < 20
        body = {"prompt": "waves", "num_frames": 66, "size": "64x64"}
        assert http.post("/v1/videos/sync", json=body).status_code == 200
        assert http.get(f"/v1/videos/{video}").json()["chunks_done"] == made
        chunks: list[Chunk] = []
        while len(chunks) < made + 2:
            chunk = client.hear()
            assert isinstance(chunk, Chunk)
            chunks.append(chunk)
        client.say("session.stop")
        rest, _ = client.rest()
        chunks += rest
    indexes = [chunk.metadata["generation_chunk_index"] for chunk in chunks]
    assert indexes == list(range(len(chunks)))
    content = http.get(f"/v1/videos/{video}/content").content
    assert (frames_of(data_of(chunks)) == frames_of(content)).all()


def still(http: httpx.Client, video: str) -> int:
    """Wait until a video has no new chunk for three seconds, and return the number of chunks."""
    since, made = time.monotonic(), -1
    while time.monotonic() - since < 3:
        now: dict[str, Any] = http.get(f"/v1/videos/{video}").json()
        assert now["status"] != "completed"
        if now["phase"] != "paused" or now["chunks_done"] != made:
            since, made = time.monotonic(), now["chunks_done"]
        time.sleep(0.1)
    return made
