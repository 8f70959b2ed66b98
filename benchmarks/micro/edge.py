"""Measures the latency of requests that generate nothing, while many clients keep the server busy.

    python benchmarks/micro/edge.py [--clients 200] [--seconds 60] [--output results.json]

Starts a server of its own with the built-in model. The clients create videos, poll, stream, and
disconnect at any time. They run in a process of their own, so that their work does not count as the
server's. One more client sends one request after another, and measures the latency of each.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np

from helios_serve.entrypoints.cli.arguments import size
from helios_serve.options.workers import DEFAULT_MODEL

AIM_MS = 50.0
PATIENCE = 120.0
PAUSE_SECONDS = 0.005
"""Seconds between two measured requests, so that measuring adds little load."""


class Client:
    """A client that creates videos, and reads each in a random way."""

    def __init__(self, http: httpx.AsyncClient, arguments: argparse.Namespace, seed: int) -> None:
        self.http = http
        self.size = "x".join(map(str, arguments.size))
        self.random = random.Random(seed)

    async def run(self) -> None:
        """Run until cancelled."""
        looks = (self.poll, self.stream, self.leave)
        while True:
            await asyncio.sleep(self.random.uniform(0.2, 1.0))
            body = {
                "prompt": "waves",
                "size": self.size,
                "num_frames": self.random.choice((33, 66)),
                "seed": self.random.randrange(1000),
            }
            answer = await self.http.post("/v1/videos", json=body)
            if answer.is_success:
                await self.random.choice(looks)(f"/v1/videos/{answer.json()['id']}")

    async def poll(self, path: str) -> None:
        while (await self.http.get(path)).json()["status"] in ("queued", "in_progress"):
            await asyncio.sleep(self.random.uniform(0.5, 1.5))

    async def stream(self, path: str) -> None:
        await self.http.get(f"{path}/stream")

    async def leave(self, path: str) -> None:
        async with self.http.stream("GET", f"{path}/{self.random.choice(('stream', 'events'))}"):
            await asyncio.sleep(self.random.uniform(0.0, 2.0))


def crowd(url: str, arguments: argparse.Namespace) -> None:
    """Run all clients in this process, until it is killed."""

    async def run() -> None:
        limits = httpx.Limits(max_connections=None)
        async with (
            httpx.AsyncClient(base_url=url, timeout=PATIENCE, limits=limits, verify=False) as http,
            asyncio.TaskGroup() as clients,
        ):
            for seed in range(arguments.clients):
                clients.create_task(Client(http, arguments, seed).run())

    asyncio.run(run())


class Meter:
    """Sends one request after another, and records the seconds of each, by route."""

    def __init__(self, http: httpx.Client, finished: list[str]) -> None:
        self.http = http
        self.finished = finished
        self.seconds: dict[str, list[float]] = {}

    def run(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        every = seconds / max(1, len(self.finished) - 1)
        next_delete = time.monotonic() + every
        while time.monotonic() < end:
            newest = self.ask("list", "/v1/videos?limit=20").json()["data"]
            self.ask("retrieve, finished", f"/v1/videos/{self.finished[0]}")
            with suppress(IndexError):
                self.ask("retrieve, in the making", f"/v1/videos/{newest[0]['id']}")
            self.ask("retrieve, unknown: 404", "/v1/videos/video_0", status=404)
            self.ask("no such route: 404", "/v1/nothing", status=404)
            self.ask("models", "/v1/models")
            self.ask("health", "/health")
            if time.monotonic() > next_delete and len(self.finished) > 1:
                self.ask("delete", f"/v1/videos/{self.finished.pop()}", "DELETE")
                next_delete += every

    def ask(
        self, route: str, path: str, method: str = "GET", *, status: int = 200
    ) -> httpx.Response:
        time.sleep(PAUSE_SECONDS)
        started = time.perf_counter()
        answer = self.http.request(method, path)
        self.seconds.setdefault(route, []).append(time.perf_counter() - started)
        if answer.status_code != status:
            raise SystemExit(f"{method} {path}: got {answer.status_code}, expected {status}")
        return answer

    def rows(self) -> list[dict[str, Any]]:
        return [
            {
                "route": route,
                "requests": len(seconds),
                "p50_ms": 1e3 * float(np.percentile(seconds, 50)),
                "p90_ms": 1e3 * float(np.percentile(seconds, 90)),
                "p99_ms": 1e3 * float(np.percentile(seconds, 99)),
            }
            for route, seconds in self.seconds.items()
        ]


@contextmanager
def server(arguments: argparse.Namespace, folder: Path) -> Iterator[str]:
    """Start a server as users do, and yield its address."""
    flags = ("--port", "0", "--data-dir", str(folder), "--device", arguments.device)
    limit = ("--max-queued", str(arguments.max_queued), "--drain-timeout", "1")
    process = subprocess.Popen(
        [sys.executable, "-m", "helios_serve", "serve"] + [arguments.model, *flags, *limit],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        match = re.search(r"http://\S+(?=/v1/videos)", process.stdout.readline())
        if match is None:
            raise SystemExit("the server did not start")
        yield match.group()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def make_finished(http: httpx.Client, arguments: argparse.Namespace) -> list[str]:
    """Create short videos, and return their ids when they are finished."""
    body = {
        "prompt": "a dog runs",
        "size": "x".join(map(str, arguments.size)),
        "num_frames": 33,
        "seed": 1,
    }
    return [
        http.post("/v1/videos/sync", json=body).raise_for_status().headers["x-video-id"]
        for _ in range(arguments.deletes + 1)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--size", type=size, metavar="WIDTHxHEIGHT", default=(64, 64))
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument(
        "--deletes", type=int, default=20, help="number of videos that are deleted meanwhile"
    )
    parser.add_argument("--max-queued", type=int, default=100)
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        server(arguments, Path(folder)) as url,
        httpx.Client(base_url=url, timeout=PATIENCE) as http,
    ):
        meter = Meter(http, make_finished(http, arguments))
        busy = multiprocessing.get_context("spawn").Process(target=crowd, args=(url, arguments))
        busy.start()
        try:
            time.sleep(min(10.0, arguments.seconds))  # until all clients have started
            meter.run(arguments.seconds)
        finally:
            busy.kill()
            busy.join()
    rows = meter.rows()
    print(f"{'route':>24} {'requests':>8} {'p50 ms':>8} {'p90 ms':>8} {'p99 ms':>8}")
    for row in rows:
        print(
            f"{row['route']:>24} {row['requests']:>8} {row['p50_ms']:>8.1f} {row['p90_ms']:>8.1f} "
            f"{row['p99_ms']:>8.1f}"
        )
    print(f"aim: p99 at most {AIM_MS:g} ms")
    if arguments.output is not None:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        machine = f"{platform.machine()} CPU, {os.cpu_count()} cores"
        result = {"machine": machine, "model": arguments.model, "clients": arguments.clients}
        arguments.output.write_text(json.dumps(result | {"rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
