"""Accepted jobs and committed chunks are durable, and nothing else is stored."""

import errno
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from helios_serve.errors import InvalidRequestError, StorageError
from helios_serve.messages import Segment, Snapshot, TensorData
from helios_serve.store.all_files import Unfinished
from helios_serve.store.job_files import SegmentStore
from helios_serve.store.snapshots import ResumePoint
from helios_serve.store.video_store import VideoStore
from helios_serve.video_request import Frames, VideoRequest

TAIL = TensorData(b"latents", (1, 16, 9, 48, 80), "bfloat16")
IMAGE = Frames(b"pixels", 1, 384, 640)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[VideoStore]:
    with closing(VideoStore(tmp_path / "store")) as store:
        yield store


def request(job_id: str = "job", **options: Any) -> VideoRequest:
    return VideoRequest(request_id=job_id, prompt="a dog", **options)


def resume_point(chunk: int, tail: TensorData | None = None) -> ResumePoint:
    """Return the state from which a job resumes at `chunk`."""
    snapshot = Snapshot(
        chunk=chunk,
        rng=b"rng",
        anchor=b"anchor",
        frames=b"frames up to %d" % chunk,
        num_frames=19,
        dtype="float32",
        height=384,
        width=640,
    )
    return ResumePoint(snapshot, tail)


def commit(store: VideoStore, chunk: int, job_id: str = "job") -> bool:
    segment = Segment(b"header", b"%d of %s" % (chunk, job_id.encode()))
    return store.commit(job_id, chunk, segment, resume_point(chunk + 1))


def files(store: VideoStore) -> set[str]:
    kinds = ("inputs", "segments", "snapshots")
    found = [path for kind in kinds for path in (store.folder / kind).rglob("*") if path.is_file()]
    return {str(path.relative_to(store.folder)) for path in found}


def test_committed_chunks_are_read_back(store: VideoStore) -> None:
    store.accept(request(), num_chunks=2)
    assert (store.segments("job"), store.header("job"), store.resume_point("job")) == (
        [],
        None,
        None,
    )
    for chunk in range(2):
        assert commit(store, chunk)
        assert store.fragment("job", chunk) == b"%d of job" % chunk
        assert store.resume_point("job") == resume_point(chunk + 1)
    assert store.header("job") == b"header"
    assert store.segments("job") == [0, 1]
    assert [store.fragment("job", chunk) for chunk in (-1, 2)] == [None, None]
    assert store.fragment("another", 0) is None


def test_a_chunk_that_is_committed_again_stays_as_it_was(store: VideoStore) -> None:
    store.accept(request(), num_chunks=2)
    commit(store, 0)
    before = store.job("job"), files(store)
    assert store.commit("job", 0, Segment(b"other", b"other"), resume_point(1, TAIL))
    assert (store.job("job"), files(store)) == before
    assert store.fragment("job", 0) == b"0 of job"
    with pytest.raises(AssertionError, match="chunk 2 in place of 1"):
        commit(store, 2)


def test_an_id_is_taken_until_its_job_is_deleted(store: VideoStore) -> None:
    store.accept(request(image=IMAGE), num_chunks=1)
    with pytest.raises(InvalidRequestError, match="'job', which is in use") as raised:
        store.accept(request(), num_chunks=1)
    assert raised.value.param == "request_id"
    assert store.unfinished()[0].request.image == IMAGE
    commit(store, 0)
    for _ in range(2):
        store.delete("job")
        assert (store.job("job"), files(store)) == (None, set())
    store.accept(request(), num_chunks=1)
    assert store.header("job") is None


def test_a_new_job_takes_nothing_over_from_files_that_stayed(store: VideoStore) -> None:
    header = store.folder / "segments/job/init.mp4"
    header.parent.mkdir()
    header.write_bytes(b"of a job whose files could not be deleted")
    store.accept(request(), num_chunks=1)
    commit(store, 0)
    assert store.header("job") == b"header"


@pytest.mark.parametrize("end", ["deleted", "cancelled"])
def test_a_job_that_ended_meanwhile_takes_no_chunk(store: VideoStore, end: str) -> None:
    store.accept(request(), num_chunks=2)
    if end == "deleted":
        store.delete("job")
    else:
        store.finish("job", "cancelled")
    assert not commit(store, 0)
    assert files(store) == set()


def test_deleting_waits_for_a_commit(store: VideoStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.accept(request(), num_chunks=1)
    begun, go_on, put = Event(), Event(), SegmentStore.put

    def slow_put(*args: Any) -> None:
        begun.set()
        assert go_on.wait(10)
        put(*args)

    monkeypatch.setattr(SegmentStore, "put", slow_put)
    with ThreadPoolExecutor(2) as threads:
        committed = threads.submit(commit, store, 0)
        assert begun.wait(10)
        deleted = threads.submit(store.delete, "job")
        go_on.set()
        assert committed.result()
        deleted.result()
    assert (store.job("job"), files(store)) == (None, set())


def test_an_extension_has_its_own_copy_of_what_it_starts_from(store: VideoStore) -> None:
    store.accept(request("first"), num_chunks=3)
    store.accept(request("second"), num_chunks=5, resume_point=resume_point(3))
    store.delete("first")
    assert store.resume_point("second") == resume_point(3)
    assert store.unfinished() == [Unfinished(request("second"), resume_point(3), 3, 3)]
    assert store.segments("second") == []
    assert commit(store, 3, "second")
    assert store.segments("second") == [3]


def test_an_extension_of_a_cut_video_begins_with_its_last_chunk(store: VideoStore) -> None:
    store.accept(request("second"), num_chunks=5, resume_point=resume_point(3, TAIL))
    assert store.unfinished() == [Unfinished(request("second"), resume_point(3, TAIL), 2, 2)]
    assert commit(store, 2, "second")
    assert store.unfinished() == [Unfinished(request("second"), resume_point(3), 2, 3)]
    assert commit(store, 3, "second")
    assert store.segments("second") == [2, 3]


@pytest.mark.parametrize("tail", [None, TAIL])
def test_an_extension_has_the_chunks_that_it_goes_on_behind(
    store: VideoStore, tail: TensorData | None
) -> None:
    store.accept(request("first"), num_chunks=3)
    for chunk in range(3):
        commit(store, chunk, "first")
    store.accept(
        request("second"), num_chunks=4, resume_point=resume_point(3, tail), extends="first"
    )
    before = list(range(3 if tail is None else 2))
    assert store.segments("second") == before
    expected = [store.fragment("first", chunk) for chunk in before]
    store.delete("first")
    assert [store.fragment("second", chunk) for chunk in before] == expected
    assert store.header("second") is not None
    for chunk in range(len(before), 4):
        assert commit(store, chunk, "second")
    assert store.segments("second") == [0, 1, 2, 3]


def test_a_request_can_be_read_with_its_reference_as_long_as_it_is_there(store: VideoStore) -> None:
    store.accept(request(image=IMAGE), num_chunks=1)
    commit(store, 0)
    store.finish("job", "completed")
    assert store.request("job") == request(image=IMAGE)
    assert store.request("another") is None


def test_a_request_has_its_reference_until_a_snapshot_replaces_it(store: VideoStore) -> None:
    whole = request(image=IMAGE)
    store.accept(whole, num_chunks=2)
    job = store.job("job")
    assert job is not None
    assert job.request == request()
    store.update_request(request(lora="style.safetensors"))
    assert store.unfinished() == [
        Unfinished(request(image=IMAGE, lora="style.safetensors"), None, 0, 0)
    ]
    commit(store, 0)
    assert store.unfinished() == [
        Unfinished(request(lora="style.safetensors"), resume_point(1), 0, 1)
    ]


@pytest.mark.parametrize("job_id", ["../../x", "a/b", "", "5" * 500, "视频 🐕", "A", "a\0b"])
def test_a_hostile_id_stays_inside(store: VideoStore, tmp_path: Path, job_id: str) -> None:
    store.accept(request("a"), num_chunks=1)
    store.accept(request(job_id, image=IMAGE), num_chunks=1)
    commit(store, 0, job_id)
    assert store.fragment(job_id, 0) == b"0 of " + job_id.encode()
    assert store.segments("a") == []
    store.delete(job_id)
    assert files(store) == set()
    assert os.listdir(tmp_path) == ["store"]


def test_a_disk_that_fills_up_leaves_the_state_before(
    store: VideoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.accept(request(), num_chunks=2)
    commit(store, 0)
    before = store.jobs(), store.resume_point("job")
    writes = 4  # file and folder, of segment and snapshot
    for call in range(writes):
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", failing_at(call))
            with pytest.raises(StorageError, match="No space left on device"):
                commit(store, 1)
        assert (store.jobs(), store.resume_point("job")) == before
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", failing_at(call))
            with pytest.raises(StorageError, match="No space left on device"):
                store.accept(
                    request("new", image=IMAGE), num_chunks=9, resume_point=resume_point(7)
                )
        assert store.jobs() == before[0]
        assert not any("new" in name or "part" in name for name in files(store))
    store.accept(request("new", image=IMAGE), num_chunks=9, resume_point=resume_point(7))
    assert commit(store, 1)
    assert store.segments("job") == [0, 1]


def failing_at(call: int) -> Callable[[int], None]:
    calls, fsync = iter(range(call)), os.fsync

    def run(descriptor: int) -> None:
        if next(calls, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    return run


def test_threads_commit_side_by_side(store: VideoStore) -> None:
    names = ["a", "b", "c", "d"]

    def make(name: str) -> list[bool]:
        store.accept(request(name), num_chunks=8)
        return [commit(store, chunk, name) for chunk in range(8)]

    with ThreadPoolExecutor(len(names)) as threads:
        assert all(all(done) for done in threads.map(make, names))
    for name in names:
        expected = [b"%d of %s" % (chunk, name.encode()) for chunk in range(8)]
        assert [store.fragment(name, chunk) for chunk in store.segments(name)] == expected
        assert store.resume_point(name) == resume_point(8)
    assert len(files(store)) == len(names) * 11
