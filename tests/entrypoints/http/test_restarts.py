"""A server that is killed repeatedly loses no accepted video."""

import random
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest

from helios_serve.model_executor.worker.tensors import as_tensor
from helios_serve.store.video_store import VideoStore
from tests.support.api import frames_of
from tests.support.dying_server import POINTS
from tests.support.server import Server, running_server, start_server
from tests.support.tries import tries

FLAGS = ("nano", "--device", "cpu", "--batch-invariant")
NUM_JOBS, NUM_RANDOM = 30, tries(4, 10)


def body(index: int) -> dict[str, Any]:
    frames = (33, 40, 66, 99)[index % 4]
    return {"prompt": f"video {index}", "num_frames": frames, "size": "64x64", "seed": index}


class Jobs:
    """The requests of a client, which it repeats until they are accepted."""

    def __init__(self) -> None:
        self.ids: dict[int, str] = {}

    def order(self, server: Server, limit: int) -> None:
        """Send those of the first `limit` requests that are not accepted, until the server dies."""
        with httpx.Client(base_url=server.url, timeout=30) as http:
            for index in range(limit):
                if index in self.ids:
                    continue
                try:
                    key = {"idempotency-key": f"job {index}"}
                    answer = http.post("/v1/videos", json=body(index), headers=key)
                except httpx.TransportError:
                    return
                assert answer.status_code == 200, answer.text
                self.ids[index] = answer.json()["id"]


def undisturbed(folder: Path) -> dict[int, Any]:
    """Return the frames of every job, and the latents of its last chunk, without kills."""
    with (
        running_server(folder, *FLAGS) as server,
        httpx.Client(base_url=server.url, timeout=120) as http,
        ThreadPoolExecutor(4) as pool,
    ):
        answers = list(
            pool.map(lambda index: http.post("/v1/videos/sync", json=body(index)), range(NUM_JOBS))
        )
    ids = {index: answer.headers["x-video-id"] for index, answer in enumerate(answers)}
    latents = last_latents(folder, ids)
    return {
        index: (frames_of(answer.content), latents[index]) for index, answer in enumerate(answers)
    }


def last_latents(folder: Path, ids: dict[int, str]) -> dict[int, Any]:
    store = VideoStore(folder)
    try:
        kept = {index: store.resume_point(name) for index, name in ids.items()}
    finally:
        store.close()
    return {
        index: as_tensor(item.tail).numpy() for index, item in kept.items() if item and item.tail
    }


def damage(folder: Path, rng: random.Random) -> None:
    """Change a bit of an unfinished job's last snapshot, and delete its last segment."""
    with closing(sqlite3.connect(folder / "jobs.sqlite3")) as rows:
        statuses = "'queued', 'in_progress'"
        ids = rows.execute(f"SELECT id FROM jobs WHERE status IN ({statuses}) AND next_chunk > 0")
        unfinished = [row[0] for row in ids]
    if not unfinished:
        return
    job = rng.choice(unfinished)
    snapshot = max((folder / "snapshots" / job).glob("*.msgpack"))
    data = bytearray(snapshot.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    snapshot.write_bytes(data)
    max((folder / "segments" / job).glob("*.m4s")).unlink()


@pytest.mark.slow
def test_a_server_that_is_killed_again_and_again_loses_nothing(tmp_path: Path) -> None:
    """Once at each named point, then at random, during 30 jobs, with damaged files in between."""
    expected = undisturbed(tmp_path / "undisturbed")
    folder, jobs, rng = tmp_path / "data", Jobs(), random.Random(0)
    lives = [(point, rng.randint(1, 3)) for point in POINTS] + [("", 0)] * NUM_RANDOM
    for life, (point, count) in enumerate(lives):
        limit = min(NUM_JOBS, 3 + NUM_JOBS * life // len(lives))
        flags = (point, str(count)) if point else None
        with start_server(folder, *FLAGS, dying=flags) as server:
            if server.url:  # some die before they listen
                jobs.order(server, limit)
            if point:
                assert server.process.wait(60) == -9, point
            else:
                time.sleep(rng.uniform(0, 4))
                server.kill()
        if life % 3 == 2:
            damage(folder, rng)
    with (
        running_server(folder, *FLAGS) as server,
        httpx.Client(base_url=server.url, timeout=120) as http,
    ):
        jobs.order(server, NUM_JOBS)
        assert len(set(jobs.ids.values())) == NUM_JOBS
        for index, name in jobs.ids.items():
            assert http.get(f"/v1/videos/{name}/stream").status_code == 200
            assert http.get(f"/v1/videos/{name}").json()["status"] == "completed"
            got = frames_of(http.get(f"/v1/videos/{name}/content").content)
            frames, _ = expected[index]
            assert got.shape == frames.shape
            assert np.abs(got.astype(int) - frames).max() <= 2
    latents = last_latents(folder, jobs.ids)
    for index, (_, right) in expected.items():
        assert np.abs(latents[index] - right).max() <= 1e-4


@pytest.mark.slow
def test_a_stand_by_goes_on_when_the_lease_of_a_dead_server_has_run_out(tmp_path: Path) -> None:
    """It waits without listening while the other lives, and then finishes the other's video."""
    flags = (*FLAGS, "--data-lease", "2")
    with ExitStack() as opened, ThreadPoolExecutor(1) as pool:
        first = opened.enter_context(running_server(tmp_path, *flags))
        video = httpx.post(f"{first.url}/v1/videos", json=body(3), timeout=30).json()["id"]
        stand_by = pool.submit(lambda: opened.enter_context(running_server(tmp_path, *flags)))
        time.sleep(3.0)
        assert not stand_by.done()
        first.kill()
        second = stand_by.result(60)
        deadline = time.monotonic() + 120
        while (status := status_of(second, video)) != "completed":
            assert status in ("queued", "in_progress")
            assert time.monotonic() < deadline
            time.sleep(0.2)


def status_of(server: Server, video: str) -> str:
    return str(httpx.get(f"{server.url}/v1/videos/{video}", timeout=30).json()["status"])
