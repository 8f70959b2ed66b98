"""Usage of tenants: requested and generated frames, counted once."""

import runpy
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from helios_serve.errors import CapacityError, InvalidRequestError
from helios_serve.messages import Segment, TensorData
from helios_serve.options.sampling import SamplingParams
from helios_serve.stage_seconds import StageSeconds
from helios_serve.store.snapshots import ResumePoint
from helios_serve.store.usage import DayUsage
from helios_serve.store.video_store import VideoStore
from helios_serve.video_request import VideoRequest

writer = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("writer.py"))))
NOON = 1_800_000_000.0 // 86400 * 86400 + 43200
FIRST, NEXT = date(2027, 1, 15), date(2027, 1, 16)


class Clock:
    now = NOON

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[VideoStore]:
    with closing(VideoStore(tmp_path / "store", clock)) as opened:
        yield opened


def accept(store: VideoStore, name: str, frames: int = 99, **options: Any) -> None:
    own = {"tenant": options.pop("tenant", "acme"), "params": SamplingParams(num_frames=frames)}
    request = VideoRequest(request_id=name, prompt="a dog", **own)
    store.accept(request, num_chunks=-(-frames // 33), **options)


def commit(store: VideoStore, name: str, chunk: int, seconds: float = 0.5) -> bool:
    return store.commit(
        name, chunk, Segment(b"h", b"f"), writer.kept_at(chunk + 1), StageSeconds(denoise=seconds)
    )


def day(store: VideoStore, which: date = FIRST, tenant: str = "acme") -> tuple[float, ...]:
    """(requests, granted, frames, device-seconds)."""
    return next(
        ((item.requests, item.granted, item.frames, item.device_seconds)
         for item in store.usage(tenant, which, which)),
        (0, 0, 0, 0.0),
    )  # fmt: skip


def test_frames_count_when_they_are_stored_and_their_request_when_it_is_accepted(
    store: VideoStore, clock: Clock
) -> None:
    accept(store, "a", 80)
    assert day(store) == (1, 80, 0, 0.0)
    commit(store, "a", 0)
    commit(store, "a", 0)  # again, as after a crash
    clock.now += 86400
    commit(store, "a", 1, 0.25)
    commit(store, "a", 2, 0.25)
    store.finish("a", "completed")
    store.delete("a")
    assert (day(store), day(store, NEXT)) == ((1, 80, 33, 0.5), (0, 0, 47, 0.5))
    assert store.usage("acme", FIRST, NEXT) == [
        DayUsage(FIRST, 1, 80, 33, 0.5),
        DayUsage(NEXT, 0, 0, 47, 0.5),
    ]
    assert store.usage("other", FIRST, NEXT) == []


@pytest.mark.parametrize("end", ["failed", "cancelled"])
def test_frames_that_will_not_be_made_are_given_back(
    store: VideoStore, clock: Clock, end: Any
) -> None:
    accept(store, "a", 80)
    accept(store, "b", 80)
    commit(store, "a", 0)
    clock.now += 86400
    for name in ("a", "a", "b"):
        store.finish(name, end)
    assert not commit(store, "a", 1)
    for name in ("a", "b"):
        store.delete(name)
    assert (day(store), day(store, NEXT)) == ((2, 33, 33, 0.5), (0, 0, 0, 0.0))


def test_a_job_that_is_taken_back_was_not_asked_for(store: VideoStore) -> None:
    accept(store, "a", 80)
    store.delete("a")
    assert day(store) == (0, 0, 0, 0.0)


def test_a_days_frames_are_refused_until_the_next(store: VideoStore, clock: Clock) -> None:
    accept(store, "a", 99, frames_per_day=150)
    with pytest.raises(
        CapacityError, match="for 52 .* at most 51: .* has requested 99 of its 150"
    ) as raised:
        accept(store, "b", 52, frames_per_day=150)
    assert (raised.value.code, raised.value.retry_after) == ("tenant_quota", 43200)
    accept(store, "b", 51, frames_per_day=150)
    accept(store, "c", 52, frames_per_day=150, tenant="other")
    accept(store, "d", 9)  # no limit any more
    store.finish("a", "failed")
    accept(store, "e", 90, frames_per_day=150)
    clock.now += 43200
    accept(store, "f", 150, frames_per_day=150)
    with pytest.raises(InvalidRequestError, match="expected at most 150, the daily") as never:
        accept(store, "g", 151, frames_per_day=150)
    assert never.value.param == "num_frames"
    assert [job.id for job in store.jobs()] == ["a", "b", "c", "d", "e", "f"]
    assert day(store)[1] == 150
    assert {path.name for path in (store.folder / "inputs").iterdir()} == set()


def test_requests_at_once_cannot_share_what_is_left(store: VideoStore) -> None:
    def attempt(index: int) -> bool:
        try:
            accept(store, f"job-{index}", 40, frames_per_day=130)
        except CapacityError:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        accepted = list(threads.map(attempt, range(16)))
    assert accepted.count(True) == len(store.jobs()) == 3
    assert day(store) == (3, 120, 0, 0.0)


def test_an_extension_counts_what_is_new(store: VideoStore) -> None:
    """40 frames become 88. The last 7 are delivered again, with the frames that were cut."""
    accept(store, "a", 40)
    for chunk in range(2):
        commit(store, "a", chunk)
    store.finish("a", "completed")
    assert day(store) == (1, 40, 40, 1.0)
    resume_point = ResumePoint(writer.kept_at(2).snapshot, TensorData(b"x", (1,), "uint8"))
    with pytest.raises(CapacityError, match="got a request for 48 frames"):
        accept(store, "b", 88, resume_point=resume_point, extends="a", frames_per_day=87)
    accept(store, "b", 88, resume_point=resume_point, extends="a", frames_per_day=88)
    assert day(store) == (2, 88, 40, 1.0)
    commit(store, "b", 1, 0.0)
    assert day(store)[2] == 66
    commit(store, "b", 2)
    assert day(store) == (2, 88, 88, 1.5)
