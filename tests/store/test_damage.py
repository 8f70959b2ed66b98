"""Damaged and missing files: a job goes back to whole chunks, or fails alone, with an error."""

import sqlite3
import struct
from collections.abc import Iterator
from contextlib import closing
from datetime import date
from pathlib import Path
from typing import Any

import msgspec
import pytest

from helios_serve.messages import Segment, Snapshot, TensorData
from helios_serve.store.checked_files import HEAD, read_struct, write_struct
from helios_serve.store.files import DamagedFileError
from helios_serve.store.job_repair import DAMAGED
from helios_serve.store.snapshots import ResumePoint
from helios_serve.store.video_store import VideoStore
from helios_serve.video_request import Frames, VideoRequest

TAIL = TensorData(b"latents of the chunk before", (1, 16, 9, 8, 8), "float32")
IMAGE = Frames(bytes(range(256)) * 3, 1, 16, 16)
HEADER = struct.pack(">I4s", 8, b"ftyp")
CHUNKS = 6


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


def point(chunk: int, tail: TensorData | None = TAIL) -> ResumePoint:
    snapshot = Snapshot(
        chunk, b"rng", b"anchor", b"frames up to %d" % chunk, 19, "float32", 384, 640
    )
    return ResumePoint(snapshot, tail)


def fragment(chunk: int) -> bytes:
    return struct.pack(">I4s", 8, b"moof") + b"chunk %d " % chunk * 20


def commit(store: VideoStore, chunk: int, job_id: str = "job") -> None:
    assert store.commit(job_id, chunk, Segment(HEADER, fragment(chunk)), point(chunk + 1))


def begin(folder: Path, chunks: int = 4, **options: Any) -> None:
    """Create a job of CHUNKS chunks, commit `chunks` of them, and close the store."""
    with closing(VideoStore(folder)) as store:
        store.accept(VideoRequest(request_id="job", prompt="a dog", **options), num_chunks=CHUNKS)
        for chunk in range(chunks):
            commit(store, chunk)


@pytest.fixture
def begun(folder: Path) -> Path:
    begin(folder)
    return folder


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def stands_at(store: VideoStore) -> tuple[int, int | None]:
    """Return the next chunk of the only unfinished job, and the chunk of its resume point."""
    (job,) = store.unfinished()
    return job.next_chunk, None if job.resume_point is None else job.resume_point.snapshot.chunk


def finish(store: VideoStore) -> None:
    """Commit the rest of the job, and check that all chunks are there and counted once."""
    (job,) = store.unfinished()
    for chunk in range(job.next_chunk, CHUNKS):
        commit(store, chunk)
    assert [store.fragment("job", chunk) for chunk in range(CHUNKS)] == [
        fragment(chunk) for chunk in range(CHUNKS)
    ]
    (row,) = store.jobs()
    assert (row.next_chunk, row.frames_left) == (CHUNKS, 0)
    (day,) = store.usage("default", date.min, date.max)
    assert day.frames == row.request.params.num_frames


@pytest.mark.parametrize("at", [0, 5, 9, 14, 22, HEAD.size, -1])
def test_every_flipped_bit_is_found(begun: Path, at: int) -> None:
    """In the head and in the content, of segments and of snapshots."""
    flip(begun / "segments/job/00001.m4s", at)
    flip(begun / "snapshots/job/00004.msgpack", at)
    with closing(VideoStore(begun)) as store:
        assert stands_at(store)[0] < 4
        for chunk in store.segments("job"):
            assert store.fragment("job", chunk) == fragment(chunk)


@pytest.mark.parametrize("size", [0, 1, HEAD.size - 1, HEAD.size, HEAD.size + 9, -1])
def test_every_cut_is_found(begun: Path, size: int) -> None:
    cut(begun / "snapshots/job/00004.msgpack", size)
    with closing(VideoStore(begun)) as store:
        assert stands_at(store) == (3, 3)
        finish(store)


def test_a_damaged_last_snapshot_costs_one_chunk(begun: Path) -> None:
    flip(begun / "snapshots/job/00004.msgpack", 40)
    with closing(VideoStore(begun)) as store:
        assert stands_at(store) == (3, 3)
        finish(store)


def test_a_lost_last_segment_is_decoded_again(begun: Path) -> None:
    """Its latents are in the snapshot after it."""
    (begun / "segments/job/00003.m4s").unlink()
    with closing(VideoStore(begun)) as store:
        assert stands_at(store) == (3, 4)
        finish(store)


@pytest.mark.parametrize("chunk", [0, 1])
def test_a_lost_early_segment_has_the_video_made_again(begun: Path, chunk: int) -> None:
    (begun / f"segments/job/{chunk:05d}.m4s").unlink()
    with closing(VideoStore(begun)) as store:
        assert stands_at(store) == (0, None)
        finish(store)


def test_a_damaged_header_is_written_again(begun: Path) -> None:
    flip(begun / "segments/job/init.mp4", HEAD.size)
    with closing(VideoStore(begun)) as store:
        assert stands_at(store) == (3, 4)
        commit(store, 3)
        assert store.header("job") == HEADER
        finish(store)


def test_damage_while_the_store_is_open_is_found_when_the_job_is_resumed(folder: Path) -> None:
    with closing(VideoStore(folder)) as store:
        store.accept(VideoRequest(request_id="job", prompt="a dog"), num_chunks=CHUNKS)
        for chunk in range(4):
            commit(store, chunk)
        flip(folder / "snapshots/job/00004.msgpack", 40)
        with pytest.raises(DamagedFileError, match="checksum does not match"):
            store.resume_point("job")
        assert stands_at(store) == (3, 3)
        finish(store)


def test_a_job_without_any_whole_snapshot_starts_again_with_its_reference(folder: Path) -> None:
    begin(folder, image=IMAGE)
    for path in (folder / "snapshots/job").iterdir():
        flip(path, 30)
    with closing(VideoStore(folder)) as store:
        (job,) = store.unfinished()
        assert (job.next_chunk, job.resume_point, job.request.image) == (0, None, IMAGE)
        finish(store)


def test_a_job_that_can_start_nowhere_fails_alone(folder: Path) -> None:
    begin(folder, image=IMAGE)
    with closing(VideoStore(folder)) as store:
        store.accept(VideoRequest(request_id="fine", prompt="a cat"), num_chunks=1)
    for path in (folder / "snapshots/job").iterdir():
        flip(path, 30)
    flip(folder / "inputs/job/media.msgpack", 100)
    with closing(VideoStore(folder)) as store:
        assert [item.request.request_id for item in store.unfinished()] == ["fine"]
        job = store.job("job")
        assert job is not None
        assert (job.status, job.error) == ("failed", DAMAGED)


def test_an_extension_goes_back_to_where_it_began(folder: Path) -> None:
    """It does not start from its request, because that would give another video."""
    begin(folder, CHUNKS)
    with closing(VideoStore(folder)) as store:
        longer = VideoRequest(request_id="longer", prompt="a dog", relation="extension")
        store.accept(longer, num_chunks=9, resume_point=point(CHUNKS, None), extends="job")
        store.finish("job", "completed")
        for chunk in range(CHUNKS, 8):
            commit(store, chunk, "longer")
    (folder / f"segments/longer/{CHUNKS:05d}.m4s").unlink()
    flip(folder / f"snapshots/longer/{CHUNKS + 1:05d}.msgpack", 30)
    with closing(VideoStore(folder)) as store:
        assert stands_at(store) == (CHUNKS, CHUNKS)
    for path in (folder / "snapshots/longer").iterdir():
        flip(path, 30)
    with closing(VideoStore(folder)) as store:
        assert store.unfinished() == []
        job = store.job("longer")
        assert job is not None
        assert job.status == "failed"
        assert store.fragment("longer", 0) == fragment(0)


@pytest.mark.parametrize("commits", [0, 1, 2])
def test_an_extension_of_a_cut_video_stands_where_it_stood(folder: Path, commits: int) -> None:
    """Its first chunk is decoded from the tail of its first snapshot."""
    begin(folder, 3)
    with closing(VideoStore(folder)) as store:
        longer = VideoRequest(request_id="longer", prompt="a dog", relation="extension")
        store.accept(longer, num_chunks=9, resume_point=point(3), extends="job")
        store.finish("job", "completed")
        for chunk in range(2, 2 + commits):
            commit(store, chunk, "longer")
    with closing(VideoStore(folder)) as store:
        assert stands_at(store) == (2 + commits, max(3, 2 + commits))
    assert not (folder / "lost+found").exists()


def test_a_finished_video_with_damage_is_read_up_to_it(folder: Path) -> None:
    begin(folder, CHUNKS)
    with closing(VideoStore(folder)) as store:
        store.finish("job", "completed")
        flip(folder / "segments/job/00002.m4s", -1)
        (folder / "segments/job/00004.m4s").unlink()
        for chunk in (2, 4):
            with pytest.raises(DamagedFileError, match=f"{chunk:05d}.m4s is"):
                store.fragment("job", chunk)
        assert store.fragment("job", 3) == fragment(3)
    with closing(VideoStore(folder)) as store:
        (job,) = store.jobs()
        assert job.status == "completed"


def test_files_without_a_checksum_are_read_as_before(folder: Path) -> None:
    begin(folder)
    for path in [*folder.glob("segments/job/*"), *folder.glob("snapshots/job/*")]:
        path.write_bytes(path.read_bytes()[HEAD.size :])
    with closing(VideoStore(folder)) as store:
        assert stands_at(store) == (4, 4)
        assert store.header("job") == HEADER
        finish(store)


def test_a_struct_is_whole_or_damaged(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_struct(path, TAIL)
    whole = path.read_bytes()
    assert read_struct(path, TensorData) == TAIL
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        with pytest.raises(DamagedFileError):
            read_struct(path, TensorData)
    path.write_bytes(whole + b"x")
    with pytest.raises(DamagedFileError, match="bytes"):
        read_struct(path, TensorData)
    path.write_bytes(msgspec.msgpack.encode(TAIL))
    assert read_struct(path, TensorData) == TAIL


@pytest.fixture
def row(begun: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(begun / "jobs.sqlite3", isolation_level=None)) as connection:
        yield connection


def test_a_changed_request_is_set_aside_with_its_files(
    begun: Path, row: sqlite3.Connection
) -> None:
    """It is still valid msgpack, but not the original request."""
    (blob,) = row.execute("SELECT request FROM jobs").fetchone()
    row.execute("UPDATE jobs SET request = ?", (blob.replace(b"a dog", b"a cat"),))
    with closing(VideoStore(begun)) as store:
        assert (store.jobs(), store.unfinished()) == ([], [])
    assert row.execute("SELECT id FROM damaged_jobs").fetchall() == [("job",)]
    assert len(list(begun.glob("lost+found/*/segments/job/*.m4s"))) == 4
