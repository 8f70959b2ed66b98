"""Killed workers and servers: no accepted video is lost, and chunks that are repeated are equal."""

import asyncio
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from helios_serve.engine.launch import launch
from helios_serve.engine.loop.engine_core import EngineCore
from helios_serve.engine.requests.async_engine import AsyncEngine
from helios_serve.options.sampling import PromptSwitch
from helios_serve.options.workers import ExecutorKind, Resources, WorkerConfig, WorkerGroup
from helios_serve.store.job_files import SegmentStore
from helios_serve.store.jobs import JobStore
from tests.support.engines import (
    fragments,
    opened,
    read,
    request,
    store_of,
)
from tests.support.ray_cluster import RayCluster
from tests.support.scripts import with_tests
from tests.support.tries import tries

MAKES = (
    request("plain", 66, seed=1),
    request("switch", 99, seed=2, switches=(PromptSwitch(1, "a red ball"),)),
    request("wide", 66, seed=3, width=128, max_lead_chunks=1),
)
"""The last one waits for its reader, so that work is in progress until the end."""


class Point(NamedTuple):
    """A place in a commit: before or after a call."""

    owner: type
    name: str
    after: bool


POINTS = {
    "before-the-segment": Point(SegmentStore, "put", after=False),
    "behind-the-segment": Point(SegmentStore, "put", after=True),
    "before-the-transaction": Point(JobStore, "advance", after=False),
    "behind-the-transaction": Point(JobStore, "advance", after=True),
}
KILLS = (1, 3)
"""Commits at which all workers are killed, each at a point of its own."""
PAIRS = [
    ("before-the-segment", "behind-the-transaction"),
    ("behind-the-segment", "before-the-transaction"),
]
ROUNDS = [*PAIRS, *(pair[::-1] for pair in PAIRS)][: tries(2, 4)]


def processes(kind: ExecutorKind, address: str | None) -> EngineCore:
    """Return an engine with two worker processes."""
    config = WorkerConfig(
        device="cpu", history_blocks=500, batch_invariant=True, resources=Resources(num_cpus=2)
    )
    return launch("nano", (WorkerGroup(config, 2),), kind, ray_address=address)


async def all_made(engine: AsyncEngine) -> dict[str, list[bytes]]:
    """Return every video. Asserts that each chunk was reported once."""
    videos = {}
    for each in MAKES:
        await engine.submit(each)
    for each in MAKES:
        chunks = await read(engine, each.request_id)
        assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
        videos[each.request_id] = fragments(chunks)
    return videos


@pytest.fixture(scope="module", params=["local", "ray"])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module")
def address(kind: ExecutorKind, request: pytest.FixtureRequest) -> str | None:
    if kind == "local":
        return None
    cluster: RayCluster = request.getfixturevalue("ray_cluster")
    return cluster.address


@pytest.fixture(scope="module")
def expected(kind: ExecutorKind, address: str | None, tmp_path_factory: Any) -> Any:
    """The videos of the same workers without kills."""

    async def main() -> dict[str, list[bytes]]:
        folder = tmp_path_factory.mktemp("undisturbed")
        async with opened(folder, processes(kind, address)) as engine:
            return await all_made(engine)

    return asyncio.run(asyncio.wait_for(main(), 300))


def killing(point: Point, kill: Callable[[], None], commit: int) -> Callable[..., Any]:
    """Wrap the call of `point`: `kill` is called before or after the call number `commit`."""
    function, calls = getattr(point.owner, point.name), itertools.count(1)

    def call(*args: Any, **options: Any) -> Any:
        is_time = next(calls) == commit
        if is_time and not point.after:
            kill()
        result = function(*args, **options)
        if is_time and point.after:
            kill()
        return result

    return call


@pytest.mark.slow
@pytest.mark.parametrize("points", ROUNDS, ids="-then-".join)
def test_workers_may_die_at_any_point_of_a_commit(
    points: tuple[str, str],
    kind: ExecutorKind,
    address: str | None,
    expected: dict[str, list[bytes]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every worker process ends at once, twice."""
    killed: list[int] = []

    async def main() -> dict[str, list[bytes]]:
        own = processes(kind, address)

        def kill() -> None:
            reports = own.worker_pool.reports()
            killed.append(sum(report.sessions + report.tasks for report in reports))
            for report in reports:
                if report.state == "ready":
                    os.kill(int(report.where.split()[-1]), signal.SIGKILL)

        for name, commit in zip(points, KILLS, strict=True):
            point = POINTS[name]
            monkeypatch.setattr(point.owner, point.name, killing(point, kill, commit))
        async with opened(tmp_path, own) as engine:
            made = await all_made(engine)
            assert {job.status for job in store_of(engine).jobs()} == {"completed"}
            return made

    assert asyncio.run(asyncio.wait_for(main(), 300)) == expected
    assert len(killed) == len(KILLS)
    assert all(killed), "there was nothing under way"


LIVES = tries(3, 5)
LINES = [
    {
        "custom_id": f"video {index}",
        "body": {
            "prompt": "a dog",
            "size": "64x64",
            "seed": index,
            "num_frames": frames,
            "steps": [1, 1, 1],
        },
    }
    for index, frames in enumerate((132, 165, 70, 66))
]


def batch(folder: Path, output: str, dying: tuple[str, ...] = ()) -> list[str]:
    """Return the command of a batch. With `dying` (see dying_server.py), it kills itself."""
    (folder / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    module = "tests.support.dying_server" if dying else "helios_serve"
    command = [sys.executable, "-m", module, *dying, "run-batch"]
    flags = ["--output", str(folder / output), "--batch-invariant", "--history-blocks", "500"]
    return [*command, str(folder / "lines.jsonl"), *flags, "--device", "cpu", "--workers", "2"]


def outputs(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.slow
def test_a_batch_that_is_killed_goes_on_with_the_same_command(tmp_path: Path) -> None:
    """At seeded moments: while it starts, and at a point of one of its first commits."""
    subprocess.run(batch(tmp_path, "undisturbed"), check=True, capture_output=True)
    rng = random.Random(0)
    store, statuses = tmp_path / "output/.helios", []
    with subprocess.Popen(batch(tmp_path, "output"), stderr=subprocess.DEVNULL) as starting:
        time.sleep(rng.uniform(0, 0.3))
        starting.kill()
    statuses.append(starting.returncode)
    for _ in range(1, LIVES):
        had = len(list(store.glob("segments/*/*")))
        point = rng.choice(("segment written", "before commit", "after commit"))
        dying = (point, str(rng.randint(1, 2)), "SIGKILL")
        done = subprocess.run(
            batch(tmp_path, "output", dying),
            stderr=subprocess.DEVNULL,
            env=os.environ | with_tests(),
            timeout=300,
            check=False,
        )
        statuses.append(done.returncode)
    assert statuses == [-signal.SIGKILL] * LIVES
    assert had > 0
    again = subprocess.run(batch(tmp_path, "output"), check=True, capture_output=True, text=True)
    assert again.stdout.endswith("4 videos, 0 failed\n")
    assert outputs(tmp_path / "output") == outputs(tmp_path / "undisturbed")
