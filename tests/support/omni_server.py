"""The real vLLM-Omni, in the environment that has it, as users start it."""

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

BUILDER = Path(__file__).parents[1] / "integrations" / "environments" / "build.py"
STREAMING = ("--max-num-seqs", "16", "--step-execution", "--diffusion-streaming-output")
START_SECONDS = 300.0
"""Seconds after which a server is taken not to start; on a busy machine it takes minutes."""
STEPS = {"steps": [1, 1, 1]}
SMALL = {"size": "64x64", "fps": 24, "seed": 3, "extra_params": STEPS}
"""Of a live session."""


class OmniServer(NamedTuple):
    """A running `vllm-omni serve`, and where it writes what it says."""

    process: "subprocess.Popen[bytes]"
    url: str
    log: Path

    def sync(self, **fields: Any) -> requests.Response:
        """A video at once; `fields` are those of the form, or a file that is open."""
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
        """The first line of the log with this text, or nothing."""
        lines = self.log.read_text().splitlines()
        return next((line for line in lines if text in line), "")


def environment() -> Path:
    """The folder of the environment, built if it is not there yet."""
    command = [sys.executable, str(BUILDER), "vllm_omni"]
    return Path(
        subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    )


def deploy_config(bin_folder: Path) -> str:
    """As users get it."""
    command = [str(bin_folder / "helios-serve"), "vllm-omni-config"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


@contextmanager
def omni_server(
    environment: Path, model: Path, log: Path, *flags: str, python_path: Path | None = None
) -> Iterator[OmniServer]:
    """Started with `flags`, and ended with all its processes however the test ends."""
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
    """How far the pixels of two videos of one length are apart at most, of 255."""
    return int(np.abs(_pixels(one) - _pixels(other)).max())


def _pixels(data: bytes) -> np.ndarray[Any, np.dtype[np.int16]]:
    with av.open(io.BytesIO(data), "r") as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack(frames).astype(np.int16)
