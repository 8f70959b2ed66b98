"""After a kill at any point, the store has the state before or after a commit."""

import json
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import pytest

from helios_serve.errors import StorageError
from helios_serve.model_config import CHUNK_FRAMES
from helios_serve.store.all_files import Unfinished
from helios_serve.store.video_store import VideoStore

WRITER = Path(__file__).with_name("writer.py")
writer = SimpleNamespace(**runpy.run_path(str(WRITER)))
STORE = "helios_serve.store"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[VideoStore]:
    with closing(VideoStore(tmp_path)) as store:
        yield store


RunUntil = Callable[[Path, str, int], bool]


@pytest.fixture(scope="module")
def run_until() -> Iterator[RunUntil]:
    """Makes the video in another process. Returns whether it was killed at this call of a target.

    The processes are forks of one that has imported the store, so that they start at once.
    """
    with subprocess.Popen(
        [sys.executable, str(WRITER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as starter:
        assert starter.stdin is not None
        assert starter.stdout is not None
        orders, answers = starter.stdin, starter.stdout

        def run(folder: Path, target: str, call: int) -> bool:
            print(json.dumps([str(folder), target, call]), file=orders, flush=True)
            status = int(answers.readline())
            assert status in (0, -signal.SIGKILL)
            return status != 0

        yield run


def files(folder: Path) -> set[str]:
    kinds = ("inputs", "segments", "snapshots")
    found = [path for kind in kinds for path in (folder / kind).rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)) for path in found}


def check_state(store: VideoStore, next_chunk: int) -> None:
    """Assert that the job is at `next_chunk`, and that exactly the files for that exist."""
    chunks = range(next_chunk)
    counted = store.usage("default", date.min, date.max)
    assert sum(day.requests for day in counted) == 1
    assert sum(day.frames for day in counted) == CHUNK_FRAMES * next_chunk
    assert sum(day.device_seconds for day in counted) == writer.SECONDS * next_chunk
    assert store.segments("job") == list(chunks)
    assert [store.fragment("job", chunk) for chunk in chunks] == [
        b"fragment %d" % chunk for chunk in chunks
    ]
    assert store.header("job") == (b"header" if chunks else None)
    assert store.resume_point("job") == (writer.kept_at(next_chunk) if chunks else None)
    expected = {"inputs/job/media.msgpack"} | {f"segments/job/{chunk:05d}.m4s" for chunk in chunks}
    if chunks:
        expected |= {"segments/job/init.mp4"}
        kept = range(max(1, next_chunk - 1), next_chunk + 1)
        expected |= {f"snapshots/job/{chunk:05d}.msgpack" for chunk in kept}
    assert files(store.folder) == expected


@pytest.mark.parametrize(
    ("target", "next_chunk"),
    [
        pytest.param("job_files.SegmentStore.put", 1, id="before-the-segment"),
        pytest.param("snapshots.SnapshotStore.put", 1, id="before-the-snapshot"),
        pytest.param("jobs.JobStore.advance", 1, id="before-the-transaction"),
        pytest.param("snapshots.SnapshotStore.delete_old", 2, id="before-the-cleanup"),
    ],
)
def test_a_commit_is_whole_or_was_not_begun(
    run_until: RunUntil, tmp_path: Path, target: str, next_chunk: int
) -> None:
    assert run_until(tmp_path, f"{STORE}.{target}", 2)
    with closing(VideoStore(tmp_path)) as store:
        check_state(store, next_chunk)
        request, resume_point = writer.request().without_media(), writer.kept_at(next_chunk)
        assert store.unfinished() == [Unfinished(request, resume_point, 0, next_chunk)]
        writer.make_video(store)
        check_state(store, writer.CHUNKS)


def test_a_job_is_accepted_whole_or_not_at_all(run_until: RunUntil, tmp_path: Path) -> None:
    assert run_until(tmp_path, f"{STORE}.jobs.JobStore.add_all", 1)
    with closing(VideoStore(tmp_path)) as store:
        assert (store.jobs(), files(tmp_path)) == ([], set())
    assert run_until(tmp_path, f"{STORE}.job_files.SegmentStore.put", 1)
    with closing(VideoStore(tmp_path)) as store:
        check_state(store, 0)
        assert store.unfinished() == [Unfinished(writer.request(), None, 0, 0)]


def test_every_write_may_be_the_last(run_until: RunUntil, tmp_path: Path) -> None:
    deaths = 0
    while run_until(folder := tmp_path / str(deaths), "os.fsync", deaths + 1):
        deaths += 1
        with closing(VideoStore(folder)) as store:
            for job in store.jobs():
                check_state(store, job.next_chunk)
            writer.make_video(store)
            check_state(store, writer.CHUNKS)
    assert deaths > 4 * writer.CHUNKS  # file and folder, of segment and snapshot


def test_opening_again_finds_everything_and_sweeps_the_rest(store: VideoStore) -> None:
    for name in ("a", "b", "c"):
        store.accept(writer.request(name), num_chunks=2)
    writer.commit(store, 0, "b")
    store.finish("c", "completed")
    jobs, known = store.jobs(), files(store.folder)
    store.close()
    for left_over in (
        "inputs/a/.media.msgpack.part",
        "segments/a/init.mp4",
        "segments/b/00001.m4s",
        "segments/stray",
        "snapshots/b/00002.msgpack",
        "snapshots/d/00001.msgpack",
    ):
        path = store.folder / left_over
        path.parent.mkdir(exist_ok=True)
        path.touch()
    with closing(VideoStore(store.folder)) as again:
        assert (again.jobs(), files(again.folder)) == (jobs, known)
        assert [item.request.request_id for item in again.unfinished()] == ["a", "b"]
        assert again.fragment("b", 0) == b"fragment 0"


def test_a_damaged_job_fails_alone(store: VideoStore) -> None:
    for name in ("image", "chunk", "fine"):
        store.accept(writer.request(name), num_chunks=2)
    writer.commit(store, 0, "chunk")
    (store.folder / "inputs/image/media.msgpack").unlink()
    damaged = store.folder / "snapshots/chunk/00001.msgpack"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(StorageError, match=f"{damaged} is damaged"):
        store.resume_point("chunk")
    assert [item.request.request_id for item in store.unfinished()] == ["chunk", "fine"]
    assert {job.id: (job.status, job.next_chunk) for job in store.jobs()} == {
        "image": ("failed", 0),
        "chunk": ("in_progress", 0),  # it starts again
        "fine": ("queued", 0),
    }


def test_a_second_server_is_refused(store: VideoStore) -> None:
    with pytest.raises(StorageError, match=f"{store.folder} is in use by another server"):
        VideoStore(store.folder)
    writer.make_video(store)


def test_videos_outlive_a_lost_table(store: VideoStore) -> None:
    writer.make_video(store)
    store.close()
    known = files(store.folder)
    (store.folder / "jobs.sqlite3").unlink()
    for _ in range(2):
        with pytest.raises(StorageError, match="jobs.sqlite3 is missing or empty, but there are"):
            VideoStore(store.folder)
    assert files(store.folder) == known
