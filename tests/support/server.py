"""A real server, started as users start it, on a free port."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from tests.support.processes import children, is_python_child
from tests.support.scripts import with_tests

URL = re.compile(r"https?://\S+(?=/v1/videos)")
COMMAND = "helios_serve"
"""The module to run, in place of which a module of `tests.support` can run."""


class Server:
    """A running `helios-serve serve`."""

    def __init__(self, process: "subprocess.Popen[str]", url: str, folder: Path) -> None:
        self.process = process
        self.url = url
        self.folder = folder

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)

    @property
    def children(self) -> list[int]:
        """Process ids of the children, workers among them."""
        threads = Path(f"/proc/{self.process.pid}/task").iterdir()
        return [int(pid) for item in threads for pid in (item / "children").read_text().split()]

    @property
    def workers(self) -> list[int]:
        """Process ids of its workers."""
        return [pid for pid in children(self.process.pid) if is_python_child(pid)]

    @contextmanager
    def workers_stopped(self) -> Iterator[None]:
        """Stop the workers (SIGSTOP) in the block, so that nothing is generated."""
        children = self.children
        for pid in children:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in children:
                os.kill(pid, signal.SIGCONT)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextmanager
def running_server(
    folder: Path, *flags: str, log: Path | None = None, module: str = COMMAND
) -> Iterator[Server]:
    """Start a server on `folder`, and end it afterwards. `log` receives its standard error."""
    with start_server(folder, *flags, log=log, module=module) as server:
        assert server.url, "the server did not start"
        yield server


@contextmanager
def start_server(
    folder: Path,
    *flags: str,
    log: Path | None = None,
    module: str = COMMAND,
    dying: tuple[str, str] | None = None,
    port: int = 0,
) -> Iterator[Server]:
    """Start a server that dies at a point of dying_server.py.

    Its URL is empty if it died before it listened. Otherwise as `running_server`.
    """
    command = [sys.executable, "-m", module, "serve", *flags]
    if dying is not None:
        command[1:3] = ["-m", "tests.support.dying_server", *dying, "SIGKILL"]
    with log.open("w") if log else nullcontext() as errors:
        process = subprocess.Popen(
            [*command, "--port", str(port), "--data-dir", str(folder)],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=os.environ | {"PYTHONSAFEPATH": "1"} | with_tests(),
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        match = URL.search(line)
        assert match is not None or not line, f"the server said {line!r}"
        yield Server(process, match.group() if match is not None else "", folder)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
