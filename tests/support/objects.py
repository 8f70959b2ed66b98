"""A real S3 server (moto's) in a process of its own, a gate in front of it, and stored videos."""

import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple
from uuid import uuid4

import httpx2 as httpx
import numpy as np

from helios_serve.media.mp4 import encode_rgb
from helios_serve.messages import Segment, Snapshot
from helios_serve.options.sampling import SamplingParams
from helios_serve.store.snapshots import ResumePoint
from helios_serve.store.video_store import VideoStore
from helios_serve.video_request import VideoRequest

BUCKET = "videos"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_REGION": "us-east-1",
}
SIGNED = {
    "authorization": "AWS4-HMAC-SHA256 Credential=testing/20261128/us-east-1/s3/aws4_request, "
    "SignedHeaders=host, Signature=0"
}
"""Moto checks that there is a signature, and by default not which."""
URL = re.compile(r"Running on (http://\S+)")


class Bucket(NamedTuple):
    """A prefix of a bucket of its own, on the server at `endpoint`."""

    endpoint: str
    prefix: str

    @property
    def url(self) -> str:
        return f"s3://{BUCKET}/{self.prefix}"

    def names(self) -> list[str]:
        """The names of all objects, below the prefix."""
        answer = httpx.get(
            f"{self.endpoint}/{BUCKET}?list-type=2&prefix={self.prefix}/", headers=SIGNED
        )
        found = re.findall(r"<Key>([^<]+)</Key>", answer.text)
        return sorted(name.removeprefix(f"{self.prefix}/") for name in found)

    def get(self, name: str) -> httpx.Response:
        return httpx.get(f"{self.endpoint}/{BUCKET}/{self.prefix}/{name}", headers=SIGNED)

    def put(self, name: str, data: bytes, **metadata: str) -> None:
        """Write an object as another client would."""
        headers = SIGNED | {f"x-amz-meta-{key}": value for key, value in metadata.items()}
        url = f"{self.endpoint}/{BUCKET}/{self.prefix}/{name}"
        assert httpx.put(url, content=data, headers=headers).status_code == 200

    def through(self, gate: "Gate") -> "Bucket":
        return self._replace(endpoint=f"http://127.0.0.1:{gate.port}")


@contextmanager
def running_s3() -> Iterator[str]:
    """Start a server with an empty bucket. Yields its URL."""
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        url = next(match[1] for line in process.stderr if (match := URL.search(line)))
        drain = threading.Thread(target=process.stderr.read, daemon=True)
        drain.start()
        assert httpx.put(f"{url}/{BUCKET}").status_code == 200
        yield url
    finally:
        process.kill()
        process.wait()
        drain.join()
        process.stderr.close()


def new_bucket(endpoint: str) -> Bucket:
    return Bucket(endpoint, uuid4().hex)


class Gate:
    """A TCP relay to a server, which can be closed: connections end, and new ones are refused."""

    def __init__(self, endpoint: str) -> None:
        self.target = int(endpoint.rpartition(":")[2])
        self.port = 0
        self._open: list[socket.socket] = []
        self.open()

    def open(self) -> None:
        listener = socket.create_server(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        self._open = [listener]
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def close(self) -> None:
        for each in self._open:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self._open = []

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                outer, _ = listener.accept()
                inner = socket.create_connection(("127.0.0.1", self.target))
                self._open += [outer, inner]
                for pair in ((outer, inner), (inner, outer)):
                    threading.Thread(target=pump, args=pair, daemon=True).start()


def pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


def segment(chunk: int) -> Segment:
    """A playable chunk of 64x64, of one colour."""
    frames = np.full((33, 64, 64, 3), 40 * chunk, np.uint8)
    return encode_rgb(frames, chunk=chunk, fps=24)


def resume_point(chunk: int) -> ResumePoint:
    return ResumePoint(
        Snapshot(
            chunk=chunk,
            rng=b"rng",
            anchor=b"anchor",
            frames=b"frames",
            num_frames=19,
            dtype="float32",
            height=64,
            width=64,
        )
    )


def begin_video(
    store: VideoStore, video_id: str, *, chunks: int = 2, tenant: str = "default", missing: int = 1
) -> None:
    """Accept a video, and store its chunks but the last `missing` ones."""
    length = chunks + missing
    params = SamplingParams(num_frames=33 * length, width=64, height=64)
    request = VideoRequest(request_id=video_id, prompt="a dog", params=params, tenant=tenant)
    store.accept(request, num_chunks=length)
    for chunk in range(chunks):
        assert store.commit(video_id, chunk, segment(chunk), resume_point(chunk + 1))


def make_video(
    store: VideoStore, video_id: str, *, chunks: int = 2, tenant: str = "default"
) -> None:
    begin_video(store, video_id, chunks=chunks, tenant=tenant, missing=0)
    store.finish(video_id, "completed")


def files_of(video_id: str, chunks: int, *, is_finished: bool = True) -> list[str]:
    """The names of all objects of a video."""
    parts = [f"{chunk:05d}.m4s" for chunk in range(chunks)]
    names = [*parts, "init.mp4", *(["video.mp4"] if is_finished else [])]
    return [f"{video_id}/{name}" for name in names]
