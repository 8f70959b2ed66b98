"""A server as users start it, on a port of its own."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

URL = re.compile(r"http://\S+(?=/v1/videos)")
COMMAND = "helios_serve.entrypoints.cli"


class Server:
    """A running `helios-serve serve`."""

    def __init__(self, process: "subprocess.Popen[str]", url: str, folder: Path) -> None:
        self.process = process
        self.url = url
        self.folder = folder

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextmanager
def running_server(
    folder: Path, *flags: str, stderr: IO[bytes] | None = None, module: str = COMMAND
) -> Iterator[Server]:
    """Started on `folder`, and ended however the test ends."""
    command = [sys.executable, "-m", module, "serve", *flags]
    process = subprocess.Popen(
        [*command, "--port", "0", "--data-dir", str(folder)],
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        env=os.environ | {"PYTHONSAFEPATH": "1"},
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        match = URL.search(line)
        assert match is not None, f"the server said {line!r}"
        yield Server(process, match.group(), folder)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
