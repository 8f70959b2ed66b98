"""A real vLLM-Omni server, started in its own environment as users do."""

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import requests

from tests.support.processes import parent

BUILDER = Path(__file__).resolve().parents[1] / "integrations" / "environments" / "build.py"
STREAMING = ("--max-num-seqs", "16", "--step-execution", "--diffusion-streaming-output")
START_SECONDS = 300.0
"""Seconds after which a server is taken not to start; on a busy machine it takes minutes."""
STEPS = {"steps": [1, 1, 1]}
SMALL = {"size": "64x64", "fps": 24, "seed": 3, "extra_params": STEPS}
"""Options of a small realtime session."""


class OmniServer(NamedTuple):
    """A running `vllm-omni serve`, and its log file."""

    process: "subprocess.Popen[bytes]"
    url: str
    log: Path

    def sync(self, **fields: Any) -> requests.Response:
        """Create a video and wait for it. `fields` are those of the form, or an open file."""
        files = {name: field for name, field in fields.items() if isinstance(field, tuple)}
        data = {name: field for name, field in fields.items() if name not in files}
        extra = {"extra_params": json.dumps(STEPS | data.pop("extra_params", {}))}
        form = {"prompt": "a dog", "size": "64x64", "fps": 24, "seed": 3} | data | extra
        return requests.post(
            f"{self.url}/v1/videos/sync",
            files={name: (None, str(value)) for name, value in form.items()} | files,
            timeout=120,
        )

    def host(self) -> int:
        """The process that our engine is in, the parent of the first worker, which must live."""
        found = re.search(r"local-0 on process (\d+)", self.said("is served by"))
        assert found is not None, "no worker is named in the log"
        return parent(int(found[1]))

    def said(self, text: str) -> str:
        """Return the first line of the log that contains `text`, or None."""
        lines = self.log.read_text().splitlines()
        return next((line for line in lines if text in line), "")


def environment() -> Path:
    """Return the folder of the environment, which is built if it does not exist."""
    command = [sys.executable, str(BUILDER), "vllm_omni"]
    return Path(
        subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    )


def deploy_config(bin_folder: Path) -> str:
    """Return the path of the deploy config, as the command prints it."""
    command = [str(bin_folder / "helios-serve"), "vllm-omni-config"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


@contextmanager
def omni_server(
    environment: Path, model: Path, log: Path, *flags: str, python_path: Path | None = None
) -> Iterator[OmniServer]:
    """Start the server with `flags`, and end all its processes afterwards."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = ["--host", "127.0.0.1", "--port", str(port)]
    command = [str(environment / "bin" / "vllm-omni"), "serve", str(model), "--omni", *where]
    env = os.environ | ({} if python_path is None else {"PYTHONPATH": str(python_path)})
    with log.open("wb") as said:
        process = subprocess.Popen(
            [*command, *flags], stdout=said, stderr=subprocess.STDOUT, env=env
        )
    server = OmniServer(process, f"http://127.0.0.1:{port}", log)
    try:
        wait_until_healthy(server)
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        finally:
            process.kill()
            process.wait()


def wait_until_healthy(server: OmniServer) -> None:
    deadline = time.monotonic() + START_SECONDS
    while server.process.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"{server.url}/health", timeout=5).close()
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    raise AssertionError("\n".join(server.log.read_text().splitlines()[-30:]))


def count_frames(data: bytes) -> int:
    with av.open(io.BytesIO(data), "r") as container:
        return sum(1 for _ in container.decode(video=0))


def differ(one: bytes, other: bytes) -> int:
    """Return the largest difference between pixels of two videos of equal length (0 to 255)."""
    return int(np.abs(_pixels(one) - _pixels(other)).max())


def _pixels(data: bytes) -> np.ndarray[Any, np.dtype[np.int16]]:
    with av.open(io.BytesIO(data), "r") as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack(frames).astype(np.int16)
