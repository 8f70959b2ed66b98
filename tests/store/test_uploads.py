"""The table of uploads follows the jobs, in the same transactions."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from helios_serve.errors import InvalidRequestError
from helios_serve.messages import Segment
from helios_serve.options.sampling import ENDLESS_FRAMES, SamplingParams
from helios_serve.store.database import Database
from helios_serve.store.objects.uploads import PendingObjects, Uploads, VideoUpload
from helios_serve.store.video_store import VideoStore
from helios_serve.video_request import VideoRequest
from tests.support.objects import begin_video, resume_point

URL = "s3://bucket/prefix"
NOW = 100.0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[VideoStore]:
    with closing(VideoStore(tmp_path, clock=lambda: NOW)) as opened:
        yield opened


@pytest.fixture
def uploads(store: VideoStore) -> Uploads:
    made = Uploads(store.database, clock=lambda: NOW)
    made.use(URL)
    return made


def found(uploads: Uploads, video_id: str = "a") -> VideoUpload:
    upload = uploads.get(video_id)
    assert upload is not None
    return upload


def accept(store: VideoStore, video_id: str = "a", chunks: int = 3) -> None:
    store.accept(VideoRequest(request_id=video_id, prompt="a dog"), num_chunks=chunks)


def commit(store: VideoStore, chunk: int, video_id: str = "a") -> None:
    segment = Segment(b"header", b"chunk %d" % chunk)
    assert store.commit(video_id, chunk, segment, resume_point(chunk + 1))


def test_a_chunk_makes_its_video_due(store: VideoStore, uploads: Uploads) -> None:
    accept(store)
    assert uploads.get("a") is None
    assert uploads.pending() == PendingObjects(0, 0)
    commit(store, 0)
    assert uploads.due(10) == [found(uploads)]
    assert uploads.due(10, exclude=("a",)) == []
    assert uploads.pending() == PendingObjects(1, 0)


def test_a_job_that_changes_while_it_is_uploaded_stays_due(
    store: VideoStore, uploads: Uploads
) -> None:
    accept(store)
    commit(store, 0)
    first = found(uploads)
    uploads.add_chunk("a", 0, before=0)
    commit(store, 1)
    uploads.rest(first)
    assert uploads.due(10) == [found(uploads)]
    uploads.add_chunk("a", 1, before=1)
    uploads.rest(found(uploads))
    assert uploads.due(10) == []
    store.finish("a", "completed")
    assert [upload.next_chunk for upload in uploads.due(10)] == [2]


def test_a_new_chunk_does_not_shorten_a_delay(store: VideoStore, uploads: Uploads) -> None:
    accept(store)
    commit(store, 0)
    uploads.postpone(found(uploads), NOW + 10)
    commit(store, 1)
    assert uploads.due(10) == []
    assert uploads.pending() == PendingObjects(1, 0)
    assert (found(uploads).attempts, found(uploads).due_at) == (1, NOW + 10)


def test_a_deletion_is_due_at_once_and_is_not_lost(store: VideoStore, uploads: Uploads) -> None:
    accept(store)
    commit(store, 0)
    before = found(uploads)
    uploads.postpone(before, NOW + 10)
    store.delete("a")
    assert uploads.pending() == PendingObjects(0, 1)
    uploads.rest(before)  # of an upload that was under way
    uploads.postpone(before, NOW + 99)
    (due,) = uploads.due(10)
    assert (due.is_deleted, due.attempts) == (1, 0)
    uploads.postpone(due, NOW + 5)
    assert found(uploads).attempts == 1
    uploads.forget("a")
    assert uploads.get("a") is None


def test_an_id_that_is_used_again_is_uploaded_again(store: VideoStore, uploads: Uploads) -> None:
    accept(store)
    commit(store, 0)
    uploads.add_chunk("a", 0, before=0)
    store.delete("a")
    accept(store)
    commit(store, 0)
    assert found(uploads).is_deleted
    uploads.forget("a")
    assert (found(uploads).next_chunk, found(uploads).is_deleted) == (0, 0)
    assert len(uploads.due(10)) == 1


def test_a_video_without_a_chunk_has_no_objects(store: VideoStore, uploads: Uploads) -> None:
    accept(store)
    store.finish("a", "cancelled")
    store.delete("a")
    assert uploads.get("a") is None


def test_a_job_that_goes_back_is_uploaded_again(store: VideoStore, uploads: Uploads) -> None:
    accept(store)
    for chunk in range(2):
        commit(store, chunk)
        uploads.add_chunk("a", chunk, before=chunk)
    uploads.rest(found(uploads))
    store._jobs.go_back("a", 1, 1)
    assert (found(uploads).next_chunk, len(uploads.due(10))) == (0, 1)
    uploads.add_chunk("a", 1, before=0)  # which was read before the job went back
    assert found(uploads).next_chunk == 0
    uploads.add_chunk("a", 0, before=0)
    assert found(uploads).next_chunk == 1


def test_a_fork_has_the_chunks_that_it_shares(store: VideoStore, uploads: Uploads) -> None:
    begin_video(store, "a", chunks=2)
    point = store.resume_point("a")
    store.accept(
        VideoRequest(request_id="b", prompt="a cat"), num_chunks=4, resume_point=point, extends="a"
    )
    assert (found(uploads, "b").next_chunk, found(uploads, "b").due_at) == (0, NOW)


def test_the_window_of_a_video_without_an_end_moves(store: VideoStore, uploads: Uploads) -> None:
    params = SamplingParams(num_frames=ENDLESS_FRAMES)
    request = VideoRequest(request_id="a", prompt="waves", params=params, kept_chunks=2)
    store.accept(request, num_chunks=ENDLESS_FRAMES // 33)
    for chunk in range(4):
        commit(store, chunk)
        uploads.add_chunk("a", chunk, before=chunk)
    uploads.rest(found(uploads))
    commit(store, 4)
    assert (found(uploads).first_chunk, len(uploads.due(10))) == (0, 1)
    uploads.remove_before("a", 1)
    assert found(uploads).first_chunk == 1


def test_a_damaged_row_keeps_its_objects(tmp_path: Path) -> None:
    with closing(VideoStore(tmp_path, clock=lambda: NOW)) as store:
        Uploads(store.database).use(URL)
        begin_video(store, "a")
        store.database.run("UPDATE jobs SET request = x'81'")
    with closing(VideoStore(tmp_path)) as store:
        assert store.job("a") is None
        assert not found(Uploads(store.database)).is_deleted


def test_earlier_videos_are_due(store: VideoStore) -> None:
    begin_video(store, "a")
    store.finish("a", "completed")
    accept(store, "b")
    uploads = Uploads(store.database, clock=lambda: NOW)
    assert uploads.due(10) == []
    uploads.use(URL)
    assert [upload.video_id for upload in uploads.due(10)] == ["a"]
    uploads.use(URL)
    assert uploads.pending() == PendingObjects(1, 0)


def test_a_deletion_is_recorded_while_there_is_no_object_store(tmp_path: Path) -> None:
    with closing(VideoStore(tmp_path)) as store:
        Uploads(store.database).use(URL)
        begin_video(store, "a")
    with closing(VideoStore(tmp_path)) as store:
        Uploads(store.database).check_unused()
        store.delete("a")
        assert Uploads(store.database).pending() == PendingObjects(0, 1)


def test_a_folder_belongs_to_one_object_store(store: VideoStore, uploads: Uploads) -> None:
    uploads.use("s3://other")  # there are no objects yet
    uploads.use(URL)
    begin_video(store, "a")
    with pytest.raises(InvalidRequestError, match="the objects of this data folder are in s3://b"):
        uploads.use("s3://other")
    uploads.check_unused()
    uploads.drop("a")
    with pytest.raises(InvalidRequestError, match=f"1 videos .* only in {URL}: start with --obj"):
        uploads.check_unused()


def test_folders_of_earlier_versions_get_the_tables(tmp_path: Path) -> None:
    with closing(VideoStore(tmp_path)) as store:
        begin_video(store, "a")
        store.database.run_all(
            ("DROP TABLE uploads", ()),
            ("DROP TABLE object_stores", ()),
            ("PRAGMA user_version = 4", ()),
        )
    with closing(VideoStore(tmp_path)) as store:
        database: Database = store.database
        assert database.run("PRAGMA user_version")[0][0] == 5
        uploads = Uploads(database)
        uploads.use(URL)
        assert [upload.video_id for upload in uploads.due(10)] == ["a"]
