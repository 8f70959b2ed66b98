"""The table of jobs, and the files that it refuses to open."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from itertools import count
from pathlib import Path
from zlib import crc32

import msgspec
import pytest

from helios_serve.errors import StorageError
from helios_serve.options.sampling import PromptSwitch
from helios_serve.stage_seconds import StageSeconds
from helios_serve.store.jobs import EndStatus, JobStore, StoredJob
from helios_serve.video_request import Frames, VideoRequest

REQUEST = VideoRequest(request_id="a", prompt="a dog", tenant="acme", lora="style.safetensors")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.sqlite3"


@pytest.fixture
def jobs(path: Path) -> Iterator[JobStore]:
    """A table whose clock advances by one second at every change."""
    ticks = count(1)
    with closing(JobStore(path, clock=lambda: float(next(ticks)))) as store:
        yield store


def columns(job: StoredJob | None) -> tuple[object, ...]:
    assert job is not None
    return (job.status, job.error, job.next_chunk, job.updated_at, job.completed_at)


def test_a_job_from_its_acceptance_to_its_end(jobs: JobStore) -> None:
    jobs.add(REQUEST, num_chunks=3)
    assert jobs.get("a") == StoredJob(
        id="a",
        tenant="acme",
        request=REQUEST,
        status="queued",
        error=None,
        created_at=1.0,
        updated_at=1.0,
        completed_at=None,
        first_chunk=0,
        next_chunk=0,
        num_chunks=3,
        has_media=False,
        kept_chunk=None,
        frames_left=99,
        start_chunk=0,
        checksum=crc32(msgspec.msgpack.encode(REQUEST)),
        queue_seconds=0.0,
        encode_seconds=0.0,
        denoise_seconds=0.0,
        decode_seconds=0.0,
    )
    job = stored(jobs)
    jobs.advance(job, 0, StageSeconds())
    jobs.advance(job, 2, StageSeconds())  # not its turn
    assert columns(jobs.get("a")) == ("in_progress", None, 1, 2.0, None)
    jobs.finish("a", "failed", "no room")
    assert columns(jobs.get("a")) == ("failed", "no room", 1, 4.0, 4.0)
    jobs.delete("a")
    assert jobs.get("a") is None


def stored(jobs: JobStore) -> StoredJob:
    job = jobs.get("a")
    assert job is not None
    return job


def test_the_time_of_each_stage_adds_up(jobs: JobStore) -> None:
    jobs.add(REQUEST, num_chunks=2)
    for chunk, spent in enumerate((StageSeconds(1.0, 2.0, 4.0, 0.5), StageSeconds(denoise=3.0))):
        jobs.advance(stored(jobs), chunk, spent)
    jobs.advance(stored(jobs), 1, StageSeconds(denoise=100.0))  # it was counted
    job = jobs.get("a")
    assert job is not None
    assert job.spent == StageSeconds(1.0, 2.0, 7.0, 0.5)


@pytest.mark.parametrize("end", ["completed", "failed", "cancelled"])
def test_the_first_end_stays(jobs: JobStore, end: EndStatus) -> None:
    jobs.add(REQUEST, num_chunks=1)
    jobs.finish("a", end)
    ended = jobs.get("a")
    jobs.finish("a", "failed", "too late")
    assert jobs.get("a") == ended
    assert ended is not None
    assert ended.is_finished


def test_a_switched_prompt_replaces_the_request(jobs: JobStore) -> None:
    image = Frames(b"pixels", 1, 384, 640)
    jobs.add(VideoRequest(request_id="a", prompt="a dog", image=image), num_chunks=9)
    switched = REQUEST.with_switch(PromptSwitch(4, "a cat"))
    jobs.update_request(switched)
    job = jobs.get("a")
    assert job is not None
    assert job.request == switched
    assert job.has_media is True


def test_jobs_come_in_the_order_of_their_acceptance(path: Path) -> None:
    times = iter([5.0, 5.0, 3.0])
    with closing(JobStore(path, clock=lambda: next(times))) as jobs:
        for name in ("b", "a", "z"):
            jobs.add(VideoRequest(request_id=name, prompt=name), num_chunks=1)
        assert [job.id for job in jobs.all()] == ["z", "a", "b"]


def test_changes_go_to_a_log_first(path: Path, jobs: JobStore) -> None:
    jobs.add(REQUEST, num_chunks=1)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.mark.parametrize(("version", "age"), [(1, "an older"), (6, "a newer")])
def test_another_schema_is_left_alone(path: Path, version: int, age: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {version}")
    before = path.read_bytes()
    with pytest.raises(StorageError, match=f"{age} version.*got schema {version}, expected 5"):
        JobStore(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("start", [0, 20, 4096])
def test_a_damaged_file_is_refused(path: Path, start: int) -> None:
    with closing(JobStore(path)) as jobs:
        for index in range(50):
            jobs.add(VideoRequest(request_id=str(index), prompt="a dog"), num_chunks=1)
    data = bytearray(path.read_bytes())
    data[start : start + 2048] = b"\xa5" * 2048
    path.write_bytes(data)
    with pytest.raises(StorageError, match=str(path)):
        JobStore(path)


def test_a_damaged_request_is_named(path: Path, jobs: JobStore) -> None:
    jobs.add(REQUEST, num_chunks=1)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE jobs SET request = x'81'")
    with pytest.raises(StorageError, match="the request of job 'a' in .* is damaged"):
        jobs.get("a")


def test_a_folder_that_is_not_there_and_a_closed_store_are_told(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No such file or directory"):
        JobStore(tmp_path / "missing" / "jobs.sqlite3")
    jobs = JobStore(tmp_path / "jobs.sqlite3")
    jobs.close()
    with pytest.raises(StorageError, match="closed"):
        jobs.all()
