"""A real SGLang server, started as users do, with this package in its environment."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import httpx2
import msgpack
import numpy as np
from websockets.sync.client import ClientConnection, connect

from tests.support.processes import children, is_python_child

BUILDER = Path(__file__).resolve().parents[1] / "integrations" / "environments" / "build.py"
START_SECONDS = 240.0
VIDEO_SECONDS = 120.0


@cache
def environment() -> Path:
    """Return the folder of SGLang's environment, which is built if it does not exist."""
    command = [sys.executable, str(BUILDER), "sglang"]
    built = subprocess.run(command, check=True, capture_output=True, text=True)
    return Path(built.stdout.strip())


class SGLang:
    """A running server."""

    def __init__(self, port: int, log: Path, pid: int) -> None:
        self.pid = pid
        self.http = httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
        self._realtime = f"ws://127.0.0.1:{port}/v1/realtime_video/generate"
        self.log = log

    @property
    def workers(self) -> list[int]:
        """Process ids of our workers, which are children of SGLang's scheduler."""
        return [pid for own in children(self.pid) for pid in children(own) if is_python_child(pid)]

    def create(self, **fields: Any) -> str:
        """Create a video. Returns its id."""
        answer = self.http.post("/v1/videos", json=fields)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    def video(self, name: str) -> dict[str, Any]:
        entry: dict[str, Any] = self.http.get(f"/v1/videos/{name}").json()
        return entry

    def finished(self, name: str) -> dict[str, Any]:
        """Wait until a video has ended, and return its entry."""
        deadline = time.monotonic() + VIDEO_SECONDS
        while (entry := self.video(name))["status"] not in ("completed", "failed"):
            assert time.monotonic() < deadline, entry
            time.sleep(0.05)
        return entry

    def content(self, name: str, variant: int = 0) -> bytes:
        answer = self.http.get(f"/v1/videos/{name}/content", params={"variant": str(variant)})
        assert answer.status_code == 200, answer.text
        return answer.content

    @contextmanager
    def realtime(self, **fields: Any) -> "Iterator[Realtime]":
        """Open a realtime session. Leaving the context disconnects."""
        with connect(self._realtime, max_size=None) as connection:
            yield Realtime(connection, fields)


class Realtime:
    """The client's side of a realtime session."""

    def __init__(self, connection: ClientConnection, fields: dict[str, Any]) -> None:
        self._connection = connection
        self._send({"type": "init", **fields})

    def prompt(self, text: str) -> None:
        self._send({"type": "event", "kind": "prompt", "payload": text, "event_id": 1})

    def chunk(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Return the next chunk, (frames, height, width, 3)."""
        parts: list[np.ndarray[Any, np.dtype[np.uint8]]] = []
        while True:
            message = self.message()
            if message["type"] == "chunk_stats":
                return np.concatenate(parts)
            assert message["type"] in ("frame_batch", "frame_batch_header"), message
            # A small payload is part of its message; a large one is the next message.
            payload = message.get("payload") or self._connection.recv(VIDEO_SECONDS)
            assert isinstance(payload, bytes)
            pixels = np.frombuffer(payload, np.uint8)
            parts.append(pixels.reshape(-1, message["height"], message["width"], 3))

    def message(self) -> dict[str, Any]:
        received: dict[str, Any] = msgpack.unpackb(self._connection.recv(VIDEO_SECONDS))
        return received

    def _send(self, message: dict[str, Any]) -> None:
        self._connection.send(msgpack.packb(message))


def command(model: Path, folder: Path, options: dict[str, Any], *flags: str) -> list[str]:
    """Return the command of a server, with `options` in SGLang's configuration file."""
    file = folder / "pipeline.json"
    file.write_text(json.dumps({"helios": options}))
    tool = str(environment() / "bin" / "sglang")
    own = ["--model-path", str(model), "--pipeline-config-path", str(file)]
    kept = ["--output-path", str(folder / "videos"), "--input-save-path", str(folder / "inputs")]
    return [tool, "serve", *own, *kept, *flags]


@contextmanager
def running_sglang(
    model: Path, folder: Path, options: dict[str, Any], *flags: str
) -> Iterator[SGLang]:
    """Start a server, and end it afterwards."""
    port, log = free_port(), folder / "server.log"
    started = [*command(model, folder, options), "--port", str(port), *flags]
    with log.open("w") as output:
        process = subprocess.Popen(
            started, stdout=output, stderr=output, start_new_session=True, env=clean()
        )
    server = SGLang(port, log, process.pid)
    try:
        with server.http:
            wait_ready(server, process)
            yield server
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def failing_sglang(model: Path, folder: Path, options: dict[str, Any], *flags: str) -> str:
    """Return the output of a server that fails to start."""
    done = subprocess.run(
        command(model, folder, options, *flags),
        capture_output=True,
        text=True,
        check=False,
        timeout=START_SECONDS,
        env=clean(),
    )
    assert done.returncode != 0
    return done.stdout + done.stderr


def clean() -> dict[str, str]:
    """Return the environment of SGLang's processes."""
    return os.environ | {"PYTHONSAFEPATH": "1"}


def wait_ready(server: SGLang, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        assert process.poll() is None, server.log.read_text()[-5000:]
        assert time.monotonic() < deadline, server.log.read_text()[-5000:]
        try:
            if server.http.get("/health").status_code == 200:
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.2)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
