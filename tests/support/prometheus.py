"""A real Prometheus that scrapes a server every second."""

import math
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx

BUILT = Path(__file__).parents[2] / "build/prometheus/usr/bin/prometheus"
CONFIG = """\
global: {{scrape_interval: 1s, scrape_timeout: 1s}}
scrape_configs:
  - job_name: helios-serve
    static_configs: [{{targets: ['{target}']}}]
"""
LISTENING = re.compile(r'"Listening on" address=(\S+)')
PATIENCE = 60.0


class Prometheus:
    """A running Prometheus. Its API: https://prometheus.io/docs/prometheus/latest/querying/api/"""

    def __init__(self, http: httpx.Client) -> None:
        self.http = http

    def query(self, expression: str) -> list[float]:
        """Return the finite values of an instant query."""
        answer = self.http.get("/api/v1/query", params={"query": expression})
        found: dict[str, Any] = answer.json()
        assert found["status"] == "success", f"{expression}: {found.get('error')}"
        values = (float(sample["value"][1]) for sample in found["data"]["result"])
        return [value for value in values if math.isfinite(value)]


@contextmanager
def running_prometheus(folder: Path, target: str) -> Iterator[Prometheus]:
    """Start a Prometheus that scrapes `target` (HOST:PORT). It listens on loopback only."""
    program = shutil.which("prometheus") or str(BUILT)
    assert Path(program).exists(), "no Prometheus; `make prometheus` gets Debian's"
    folder.mkdir()
    config = folder / "prometheus.yml"
    config.write_text(CONFIG.format(target=target))
    command = [
        program,
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'data'}",
        "--web.listen-address=127.0.0.1:0",
    ]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        address = address_of(process, folder / "log")
        with httpx.Client(base_url=f"http://{address}", timeout=30) as http:
            yield Prometheus(http)
    finally:
        process.terminate()
        process.wait(30)


def address_of(process: "subprocess.Popen[bytes]", log: Path) -> str:
    """Wait until Prometheus listens, and return where."""
    deadline = time.monotonic() + PATIENCE
    while (found := LISTENING.search(log.read_text())) is None:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    return found[1]
