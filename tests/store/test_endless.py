"""Videos without an end: what is stored of them stays bounded."""

from collections.abc import Iterator
from contextlib import closing
from datetime import date
from pathlib import Path

import pytest

from helios_serve.entrypoints.http.live.hls import playlist
from helios_serve.messages import Segment
from helios_serve.options.sampling import ENDLESS_FRAMES, PromptSwitch, SamplingParams
from helios_serve.service.videos.video_object import video_object
from helios_serve.store.jobs import StoredJob
from helios_serve.store.usage import utc
from helios_serve.store.video_store import VideoStore
from helios_serve.video_request import MAX_OLD_SWITCHES, VideoRequest, prompt_weights
from tests.store.test_video_store import resume_point

KEPT = 4
REQUEST = VideoRequest(
    request_id="a",
    prompt="waves",
    params=SamplingParams(num_frames=ENDLESS_FRAMES),
    kept_chunks=KEPT,
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[VideoStore]:
    with closing(VideoStore(tmp_path)) as opened:
        yield opened


def commit(store: VideoStore, chunks: range) -> StoredJob:
    for chunk in chunks:
        assert store.commit(
            "a", chunk, Segment(b"header", b"chunk %d" % chunk), resume_point(chunk + 1)
        )
    return found(store)


def found(store: VideoStore) -> StoredJob:
    job = store.job("a")
    assert job is not None
    return job


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "segments/a").iterdir())


def test_twice_the_window_is_kept_and_the_window_is_shown(
    store: VideoStore, tmp_path: Path
) -> None:
    store.accept(REQUEST, num_chunks=REQUEST.params.num_frames // 33)
    job = commit(store, range(3))
    assert (job.chunks, job.shown_chunks) == (range(3), range(3))
    job = commit(store, range(3, 20))
    assert (job.chunks, job.shown_chunks) == (range(12, 20), range(16, 20))
    assert files(tmp_path) == [*(f"{chunk:05d}.m4s" for chunk in range(12, 20)), "init.mp4"]
    assert store.fragment("a", 11) is None
    assert store.fragment("a", 12) == b"chunk 12"
    lines = playlist(job).splitlines()
    assert "#EXT-X-MEDIA-SEQUENCE:16" in lines
    assert [line for line in lines if line.endswith(".m4s")] == [f"{n}.m4s" for n in range(16, 20)]
    assert not any(
        "PLAYLIST-TYPE" in line or "X-START" in line or "ENDLIST" in line for line in lines
    )


def test_a_crash_before_old_segments_are_deleted_leaves_none(tmp_path: Path) -> None:
    with closing(VideoStore(tmp_path)) as store:
        store.accept(REQUEST, num_chunks=REQUEST.params.num_frames // 33)
        commit(store, range(20))
    (tmp_path / "segments/a/00011.m4s").write_bytes(b"left")
    with closing(VideoStore(tmp_path)) as store:
        assert found(store).chunks == range(12, 20)
        assert [item.next_chunk for item in store.unfinished()] == [20]
        commit(store, range(20, 21))
    assert files(tmp_path)[0] == "00013.m4s"
    assert not (tmp_path / "lost+found").exists()


def test_it_is_completed_where_it_is_stopped(store: VideoStore) -> None:
    store.accept(REQUEST, num_chunks=REQUEST.params.num_frames // 33)
    commit(store, range(20))
    video = video_object(found(store), None)
    assert (video.num_frames, video.num_chunks, video.progress) == (None, None, 0)
    assert (video.seconds, video.chunks_done) == ("27.5", 20)
    assert store.end_early("a") == "completed"
    video = video_object(found(store), None)
    assert (video.status, video.progress, video.error) == ("completed", 100, None)
    assert playlist(found(store)).endswith("#EXT-X-ENDLIST\n")


def test_without_a_chunk_it_is_cancelled(store: VideoStore) -> None:
    store.accept(REQUEST, num_chunks=REQUEST.params.num_frames // 33)
    assert store.end_early("a") == "cancelled"


def test_frames_count_as_they_are_made(store: VideoStore) -> None:
    store.accept(REQUEST, num_chunks=REQUEST.params.num_frames // 33)
    job = commit(store, range(3))
    (day,) = store.usage(REQUEST.tenant, *2 * (utc_day(job.created_at),))
    assert (day.requests, day.frames, day.granted) == (1, 99, 99)


def utc_day(time: float) -> date:
    return utc(time).date()


def test_old_prompt_switches_are_forgotten() -> None:
    request = REQUEST
    for number in range(1, 1000):
        request = request.with_switch(PromptSwitch(3 * number, f"prompt {number}"))
    assert len(request.params.switches) == MAX_OLD_SWITCHES + 1
    (weight,) = prompt_weights(request.prompt, request.params, 3000)
    assert weight.prompt == "prompt 999"
