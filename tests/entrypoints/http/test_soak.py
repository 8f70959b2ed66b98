"""Two hundred clients for minutes: nothing is lost, and nothing is left behind."""

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx2 as httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.crowd import Crowd
from tests.support.server import Server, running_server
from tests.support.tries import tries

CLIENTS = 200
WARM_UP, SECONDS = tries(100, 150), tries(120, 180)
"""Seconds of the first crowd, and of the one that is measured."""
GRACE = "2"
MAX_SLOPE = 1.0
"""Allowed growth of memory, in MB per minute."""
REST_SECONDS = 120.0
"""Seconds in which the server must become idle after all clients have left."""
EXPECTED_WARNING = "nano-random has random weights"
"""The only log line above level INFO that is expected."""
FLAGS = (
    *("nano-random", "--device", "cpu", "--max-queued", "16", "--session-grace", GRACE),
    *("--history-blocks", str(8 * 29 + 1)),
)
"""Blocks for 8 sessions of 64x64, 29 each, and the null block."""


class Idle(NamedTuple):
    """The resources of an idle server."""

    files: int
    threads: int
    children: int
    tasks: float
    blocks: float
    sessions: float
    waiting: float


@pytest.mark.slow
@pytest.mark.alone
def test_a_crowd_loses_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    """A first crowd starts all threads, and fills the allocator's caches."""
    log = tmp_path / "log"
    with running_server(tmp_path / "data", *FLAGS, log=log) as server:
        asyncio.run(Crowd(server.url, CLIENTS, seed=1000).run(WARM_UP))
        idle = at_rest(server)
        crowd = Crowd(server.url, CLIENTS, seed=0)
        sizes = asyncio.run(watched(crowd, server))
        after = at_rest(server)
        slope = slope_of(sizes)
        print(f"{crowd.done.total()} done: {dict(crowd.done)}, refused {dict(crowd.refused)}")
        print(f"{slope:.2f} MB a minute")
        print(f"MB by the second: {[round(size) for size in sizes]}")
        print(f"before {idle}, after {after}")
        check_nothing_lost(server, crowd)
        (said,) = (line for line in log.read_text().splitlines() if " INFO " not in line)
        assert EXPECTED_WARNING in said
        assert after == idle
        assert slope < MAX_SLOPE, sizes
        assert len(crowd.done) == 12
        assert crowd.refused["queue_full"]


async def watched(crowd: Crowd, server: Server) -> list[float]:
    """Run the crowd, and return the server's memory in MB for each second."""
    sizes: list[float] = []

    async def watch() -> None:
        while True:
            sizes.append(status_of(server, "VmRSS") / 1024)
            await asyncio.sleep(1)

    watching = asyncio.create_task(watch())
    await crowd.run(SECONDS)
    watching.cancel()
    return sizes[:SECONDS]


def slope_of(sizes: list[float]) -> float:
    """Return the growth in MB per minute over the last two thirds, by least squares."""
    tail = sizes[len(sizes) // 3 :]
    return 60 * float(np.polyfit(range(len(tail)), tail, 1)[0])


def at_rest(server: Server) -> Idle:
    """Wait until no work and no connections are left, and return what the server holds."""
    deadline = time.monotonic() + REST_SECONDS
    before = None
    while time.monotonic() < deadline:
        now = held(server)
        if now == before and not now.sessions + now.waiting + now.blocks:
            return now
        before = now
        time.sleep(float(GRACE) + 1)
    raise AssertionError(f"it does not come to rest: {before}")


def held(server: Server) -> Idle:
    # Before the request, whose connection the server may still be closing after the response.
    files = len(os.listdir(f"/proc/{server.process.pid}/fd"))
    gauges: dict[str, float] = {}
    for family in text_string_to_metric_families(httpx.get(f"{server.url}/metrics").text):
        for sample in family.samples:
            gauges[sample.name] = gauges.get(sample.name, 0.0) + sample.value
    return Idle(
        files=files,
        threads=status_of(server, "Threads"),
        children=len(server.children),
        tasks=gauges["helios:event_loop_tasks"],
        blocks=gauges["helios:history_blocks_used"],
        sessions=gauges["helios:num_sessions"],
        waiting=gauges["helios:num_tasks_waiting"],
    )


def status_of(server: Server, name: str) -> int:
    """Return a value of /proc/PID/status; sizes are in KiB."""
    for line in Path(f"/proc/{server.process.pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise AssertionError(name)


def check_nothing_lost(server: Server, crowd: Crowd) -> None:
    """Assert that every video has ended in the expected way."""
    with httpx.Client(base_url=server.url, timeout=60) as http:
        videos = {video["id"]: video for video in listed(http)}
    assert not crowd.deleted & videos.keys()
    assert crowd.wanted | crowd.given_up <= videos.keys()
    for video in videos.values():
        if video["id"] in crowd.wanted or video["status"] == "completed":
            assert video["status"] == "completed", video
            assert video["chunks_done"] == video["num_chunks"], video
        else:
            assert (video["status"], video["error"]["code"]) == ("failed", "cancelled"), video


def listed(http: httpx.Client) -> Iterator[dict[str, Any]]:
    """All videos, page by page."""
    after: dict[str, str] = {}
    while True:
        page = http.get("/v1/videos", params={"limit": "100", **after}).json()
        yield from page["data"]
        if not page["has_more"]:
            return
        after = {"after": page["last_id"]}
