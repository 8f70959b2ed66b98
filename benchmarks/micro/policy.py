"""Checks that a real server follows its scheduling policy, whichever stage is the bottleneck.

    python benchmarks/micro/policy.py [weights priority flex eta] [--seconds 180] [--output FILE]

Starts servers of its own with the built-in model and puts loads of two tenants on them:

- weights: two tenants with weights 3:1, each with more requests than its share allows. The server's
  chunks must be divided by 3:1 within 10 %, where decoding is the bottleneck and where denoising
  is. The latter holds only if not all sessions fit one step: see --max-num-batched-tokens.
- priority: a priority session together with six default ones, and alone. Its longest gap between
  two chunks must be at most 2.5 times that of the session alone.
- flex: a flex session must get chunks while six default ones run.
- eta: the estimated remaining time of each video, asked at each of its chunks, against the time
  that it then took. From the second chunk on, it must be within 25 %, or within the average time
  between two chunks of the video, since the next chunk may come a little sooner or later.

Only shares and ratios are judged, so other work on the machine matters little if it is steady.
"""

import argparse
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx2 as httpx

from helios_serve.options.workers import DEFAULT_MODEL

CHUNK_FRAMES = 33
POLL_SECONDS = 0.15
ENDLESS = 400
"""Chunks of a video that is long enough not to end during a measurement."""
SIZE = {"decode": (64, 64), "denoise": (64, 64)}
STEPS = {"decode": (2, 2, 2), "denoise": (20, 20, 20)}
"""Options that make a stage the bottleneck of the built-in model."""
WEIGHTS = {"heavy": 3.0, "light": 1.0}
MAX_GAP_RATIO, SHARE_ERROR, ETA_ERROR = 2.5, 0.1, 0.25
FIRST_CHUNKS = 2
"""Chunks of a video after which its estimates are checked."""


class Video(NamedTuple):
    """A video to create, `after` seconds after the others."""

    chunks: int = ENDLESS
    tenant: str = "heavy"
    tier: str = "default"
    after: float = 0.0


class Seen(NamedTuple):
    """A delivered chunk, and the server's estimate of the remaining time at that moment."""

    at: float
    eta: float | None


class Watched:
    """A video that a thread creates, and watches until it ends or `stop` is set."""

    def __init__(self, name: str, video: Video) -> None:
        self.name = name
        self.video = video
        self.chunks: list[Seen] = []
        self.ended_at: float | None = None

    def run(self, server: "Server", bottleneck: str, stop: threading.Event) -> None:
        if stop.wait(self.video.after):
            return
        width, height = SIZE[bottleneck]
        body = {
            "prompt": "a dog runs over a green hill",
            "size": f"{width}x{height}",
            "num_frames": CHUNK_FRAMES * self.video.chunks,
            "steps": STEPS[bottleneck],
            "service_tier": self.video.tier,
        }
        with server.client(self.video.tenant) as http:
            path = (
                f"/v1/videos/{http.post('/v1/videos', json=body).raise_for_status().json()['id']}"
            )
            while not stop.wait(POLL_SECONDS):
                known = http.get(path).raise_for_status().json()
                now = time.monotonic()
                while len(self.chunks) < known["chunks_done"]:
                    self.chunks.append(Seen(now, known["eta_seconds"]))
                if known["status"] not in ("queued", "in_progress"):
                    assert known["status"] == "completed", known
                    self.ended_at = now
                    return
            http.delete(path)

    def between(self, start: float, end: float) -> int:
        """Return the chunks that arrived from `start` to `end`."""
        return sum(start < chunk.at <= end for chunk in self.chunks)


class Server:
    """A running server, with the keys of its tenants."""

    def __init__(self, url: str, keys: dict[str, str]) -> None:
        self.url = url
        self.keys = keys

    def client(self, tenant: str) -> httpx.Client:
        headers = {"authorization": f"Bearer {self.keys[tenant]}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=120)

    def watch(
        self,
        videos: Sequence[Video],
        bottleneck: str,
        seconds: float | None = None,
        *,
        until_first: bool = False,
    ) -> list[Watched]:
        """Create videos concurrently. Watch them for `seconds`, or until the first or all end."""
        stop = threading.Event()
        watched = [Watched(f"{v.tenant}-{index}", v) for index, v in enumerate(videos)]
        threads = [
            threading.Thread(target=item.run, args=(self, bottleneck, stop)) for item in watched
        ]
        for thread in threads:
            thread.start()
        if seconds is not None:
            time.sleep(seconds)
            stop.set()
        if until_first:
            threads[0].join()
            stop.set()
        for thread in threads:
            thread.join()
        return watched


@contextmanager
def running(arguments: argparse.Namespace) -> Iterator[Server]:
    """Start a server as users do, warm it up, and yield it."""
    command = [sys.executable, "-m", "helios_serve"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tenants = folder / "tenants.toml"
        tenants.write_text("".join(f"[tenants.{t}]\nweight = {w}\n" for t, w in WEIGHTS.items()))
        keys = {
            tenant: subprocess.run(
                [*command, "keys", "create", "--tenant", tenant, "--data-dir", name],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            ).stdout.strip()
            for tenant in WEIGHTS
        }
        flags = ("--port", "0", "--data-dir", name, "--tenants", str(tenants), "--no-access-log")
        roles = [flag for item in arguments.workers for flag in ("--workers", item)]
        if arguments.max_num_batched_tokens is not None:
            roles += ["--max-num-batched-tokens", str(arguments.max_num_batched_tokens)]
        process = subprocess.Popen(
            [*command, "serve", arguments.model, *flags, "--drain-timeout", "1", *roles],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            match = re.search(r"http://\S+(?=/v1/videos)", process.stdout.readline())
            if match is None:
                raise SystemExit("the server did not start")
            server = Server(match.group(), keys)
            server.watch([Video(chunks=2)], "decode")
            yield server
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


class Result(NamedTuple):
    """The result of a load. `is_met`: it is what the policy promises."""

    what: str
    figures: dict[str, Any]
    is_met: bool


def weights(server: Server, arguments: argparse.Namespace) -> Iterator[Result]:
    for bottleneck in arguments.bottlenecks:
        videos = [Video(tenant=tenant) for tenant in WEIGHTS for _ in range(3)]
        watched = server.watch(videos, bottleneck, arguments.seconds)
        start = max(item.chunks[0].at for item in watched)
        chunks = {
            tenant: sum(
                i.between(start, time.monotonic()) for i in watched if i.video.tenant == tenant
            )
            for tenant in WEIGHTS
        }
        ratio = chunks["heavy"] / max(1, chunks["light"])
        off = ratio / (WEIGHTS["heavy"] / WEIGHTS["light"]) - 1
        figures = {"chunks": chunks, "ratio": ratio}
        yield Result(f"weights 3:1, {bottleneck}", figures, abs(off) <= SHARE_ERROR)


def priority(server: Server, arguments: argparse.Namespace) -> Iterator[Result]:
    live, others = Video(20, "light", "priority"), [Video() for _ in range(6)]
    for bottleneck in arguments.bottlenecks:
        for _ in range(arguments.repeat):
            alone, beside = (
                longest_gap(server.watch([live, *more], bottleneck, until_first=True)[0])
                for more in ([], others)
            )
            figures = {"alone": alone, "beside": beside, "ratio": beside / alone}
            is_met = beside <= MAX_GAP_RATIO * alone
            yield Result(f"longest gap of a priority session, {bottleneck}", figures, is_met)


def longest_gap(item: Watched) -> float:
    """Return the longest time between two chunks, in seconds."""
    times = [chunk.at for chunk in item.chunks]
    return max(after - before for before, after in zip(times, times[1:], strict=False))


def flex(server: Server, arguments: argparse.Namespace) -> Iterator[Result]:
    videos = [Video(tenant="light", tier="flex"), *(Video() for _ in range(6))]
    for bottleneck in arguments.bottlenecks:
        first, *others = server.watch(videos, bottleneck, arguments.seconds)
        figures = {"flex": len(first.chunks), "default": sum(len(item.chunks) for item in others)}
        yield Result(f"flex beside six default, {bottleneck}", figures, bool(first.chunks))


LOADS: dict[str, list[Video]] = {
    "one": [Video(12)],
    "six equal": [Video(8)] * 6,
    "short behind long": [Video(16), Video(16), Video(6, after=8.0)],
    "3:1": [Video(12), Video(12, "light")],
}


def eta(server: Server, arguments: argparse.Namespace) -> Iterator[Result]:
    for bottleneck in arguments.bottlenecks:
        for name, videos in LOADS.items():
            for item in server.watch(videos, bottleneck):
                assert item.ended_at is not None
                judged = item.chunks[FIRST_CHUNKS - 1 : -1]
                estimates = [
                    {
                        "chunk": index,
                        "eta": -1.0 if chunk.eta is None else chunk.eta,
                        "actual": item.ended_at - chunk.at,
                    }
                    for index, chunk in enumerate(judged, start=FIRST_CHUNKS)
                ]
                chunk = (item.ended_at - item.chunks[0].at) / (item.video.chunks - 1)
                errors = [abs(row["eta"] - row["actual"]) for row in estimates]
                met = [
                    error <= max(ETA_ERROR * row["actual"], chunk)
                    for error, row in zip(errors, estimates, strict=True)
                ]
                figures = {"within": f"{sum(met)} of {len(met)}", "estimates": estimates}
                yield Result(f"eta, {name}, {item.name}, {bottleneck}", figures, all(met))


GOALS: dict[str, Callable[[Server, argparse.Namespace], Iterator[Result]]] = {
    "weights": weights,
    "priority": priority,
    "flex": flex,
    "eta": eta,
}


def show(result: Result) -> None:
    """Print a result. Estimates are shown as predicted/actual seconds at each chunk."""
    estimates = " ".join(
        f"{row['eta']:.1f}/{row['actual']:.1f}" for row in result.figures.get("estimates", ())
    )
    rest = ", ".join(
        f"{key} {value:.2f}" if isinstance(value, float) else f"{key} {value}"
        for key, value in result.figures.items()
        if key != "estimates"
    )
    print("met   " if result.is_met else "MISSED", f"{result.what}: {rest}", estimates, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("goals", nargs="*", default=list(GOALS), metavar="GOAL")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--workers", action="append", default=[], metavar="N[:ROLES]")
    parser.add_argument("--max-num-batched-tokens", type=int, metavar="N", help="of the server")
    parser.add_argument("--bottlenecks", nargs="+", choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--repeat", type=int, default=3, help="runs of the priority session")
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    arguments = parser.parse_args()
    results = []
    with running(arguments) as server:
        for goal in arguments.goals:
            for result in GOALS[goal](server, arguments):
                show(result)
                results.append(result)
    if arguments.output is not None:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        machine = f"{platform.machine()} CPU, {os.cpu_count()} cores"
        rows = [item._asdict() for item in results]
        content = {"machine": machine, "model": arguments.model, "results": rows}
        arguments.output.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
