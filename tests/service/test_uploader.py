"""Videos go to a real S3 server after they are stored, and their objects go with them."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from helios_serve.media.mp4 import defragment
from helios_serve.metrics import Metrics
from helios_serve.options.objects import ObjectOptions
from helios_serve.options.sampling import ENDLESS_FRAMES, SamplingParams
from helios_serve.service.videos import uploader as module
from helios_serve.service.videos.finished_files import FinishedFiles
from helios_serve.service.videos.uploader import Uploader
from helios_serve.store.files import DamagedFileError
from helios_serve.store.objects.video_objects import open_objects
from helios_serve.store.video_store import VideoStore
from helios_serve.video_request import VideoRequest
from tests.support.api import frames_of
from tests.support.objects import (
    Bucket,
    Gate,
    begin_video,
    files_of,
    make_video,
    resume_point,
    segment,
)


@pytest.fixture(autouse=True)
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(module, "FIRST_DELAY", 0.1)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[VideoStore]:
    with closing(VideoStore(tmp_path)) as opened:
        yield opened


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def uploader_of(
    store: VideoStore,
    bucket: Bucket,
    metrics: Metrics | None = None,
    *,
    drop_local: bool = False,
) -> Uploader:
    options = ObjectOptions(
        object_store=bucket.url,
        object_store_endpoint=bucket.endpoint,
        object_store_drop_local=drop_local,
    )
    objects = open_objects(store, options)
    assert objects is not None
    files = FinishedFiles(store.folder / "finished", store)
    return Uploader(objects, store, files, metrics or Metrics())


def run_until(uploader: Uploader, condition: Callable[[], bool]) -> None:
    async def main() -> None:
        async with asyncio.timeout(30), uploader:
            while not condition():
                await asyncio.sleep(0.01)

    asyncio.run(main())


def run_all(uploader: Uploader) -> None:
    """Run until there is nothing to do."""
    run_until(uploader, lambda: sum(uploader.uploads.pending()) == 0)


def local_files(store: VideoStore, video_id: str) -> list[str]:
    folder = store.files.segments.folder(video_id)
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_segments_come_while_a_video_is_made_and_the_mp4_when_it_is_finished(
    store: VideoStore, bucket: Bucket, metrics: Metrics, tmp_path: Path
) -> None:
    uploader = uploader_of(store, bucket, metrics)
    begin_video(store, "a", chunks=3)
    run_all(uploader)
    assert bucket.names() == files_of("a", 3, is_finished=False)
    assert bucket.get("a/00001.m4s").content == segment(1).fragment
    store.finish("a", "completed")
    run_all(uploader)
    assert bucket.names() == files_of("a", 3)
    joined = tmp_path / "joined.mp4"
    joined.write_bytes(segment(0).header + b"".join(segment(n).fragment for n in range(3)))
    defragment(joined)
    whole = bucket.get("a/video.mp4").content
    assert (frames_of(whole) == frames_of(joined.read_bytes())).all()
    assert len(local_files(store, "a")) == 4
    assert list((tmp_path / "finished").iterdir()) == []
    sizes = sum(len(bucket.get(name).content) for name in bucket.names())
    assert f"helios:object_store_bytes_total {float(sizes)}" in metrics.render().decode()


def test_videos_that_were_there_before_are_uploaded(store: VideoStore, bucket: Bucket) -> None:
    for name in "abc":
        make_video(store, name, chunks=1)
    run_all(uploader_of(store, bucket))
    assert bucket.names() == sorted(name for video in "abc" for name in files_of(video, 1))


def test_objects_are_deleted_with_their_video(store: VideoStore, bucket: Bucket) -> None:
    uploader = uploader_of(store, bucket)
    make_video(store, "a")
    make_video(store, "ab")
    run_all(uploader)
    store.delete("a")
    run_all(uploader)
    assert bucket.names() == files_of("ab", 2)


def test_an_outage_delays_uploads_and_deletions(
    store: VideoStore, bucket: Bucket, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate(bucket.endpoint)
    uploader = uploader_of(store, bucket.through(gate), metrics)
    make_video(store, "a")
    run_all(uploader)
    gate.close()
    store.delete("a")
    make_video(store, "b")

    async def main() -> None:
        async with asyncio.timeout(30), uploader:
            while uploader.last_error is None or len(caplog.records) < 2:
                await asyncio.sleep(0.01)
            assert await uploader.pending() == (1, 1)
            assert uploader.last_error == (
                "the object store cannot be used now: no connection to "
                f"http://127.0.0.1:{gate.port}"
            )
            gate.open()
            while sum(await uploader.pending()):
                await asyncio.sleep(0.01)

    asyncio.run(main())
    gate.close()
    assert uploader.last_error is None
    assert bucket.names() == files_of("b", 2)
    text = metrics.render().decode()
    assert 'helios:object_store_failures_total{operation="delete"} 0.0' not in text
    assert 'helios:object_store_failures_total{operation="upload"} 0.0' not in text
    assert 'helios:object_store_pending{operation="upload"} 0.0' in text


def test_the_window_of_a_video_without_an_end_moves_there_too(
    store: VideoStore, bucket: Bucket
) -> None:
    uploader = uploader_of(store, bucket)
    params = SamplingParams(num_frames=ENDLESS_FRAMES, width=64, height=64)
    request = VideoRequest(request_id="a", prompt="waves", params=params, kept_chunks=2)
    store.accept(request, num_chunks=ENDLESS_FRAMES // 33)
    for chunk in range(7):
        assert store.commit("a", chunk, segment(0), resume_point(chunk + 1))
        if chunk in (2, 5):
            run_all(uploader)
    run_all(uploader)
    assert bucket.names() == [f"a/{chunk:05d}.m4s" for chunk in range(3, 7)] + ["a/init.mp4"]


def test_local_segments_are_dropped_and_read_from_there(store: VideoStore, bucket: Bucket) -> None:
    make_video(store, "a")
    begin_video(store, "b")
    run_all(uploader_of(store, bucket, drop_local=True))
    assert local_files(store, "a") == []
    assert len(local_files(store, "b")) == 3, "it is not finished"
    assert store.header("a") == segment(0).header
    assert [store.fragment("a", chunk) for chunk in range(3)] == [
        segment(0).fragment,
        segment(1).fragment,
        None,
    ]
    bucket.put("a/00001.m4s", b"other", sha256="0")
    with pytest.raises(DamagedFileError):
        store.fragment("a", 1)


def test_a_dropped_video_can_be_extended(store: VideoStore, bucket: Bucket) -> None:
    make_video(store, "a")
    run_all(uploader_of(store, bucket, drop_local=True))
    request = VideoRequest(request_id="b", prompt="a cat", relation="extension", parent="a")
    point = store.resume_point("a")
    store.accept(request, num_chunks=4, resume_point=point, extends="a")
    assert len(local_files(store, "b")) == 3
    assert store.fragment("b", 1) == segment(1).fragment
    store.delete("a")
    assert store.fragment("b", 1) == segment(1).fragment


def test_dropped_videos_survive_a_restart(tmp_path: Path, bucket: Bucket) -> None:
    with closing(VideoStore(tmp_path)) as store:
        make_video(store, "a")
        run_all(uploader_of(store, bucket, drop_local=True))
    with closing(VideoStore(tmp_path)) as store:
        uploader = uploader_of(store, bucket)
        assert store.fragment("a", 0) == segment(0).fragment
        job = store.job("a")
        assert job is not None
        assert frames_of(uploader.files.get(job, "video").read_bytes()).shape[0] == 66
    assert not (tmp_path / "lost+found").exists()


@pytest.mark.parametrize("name", ["video.mp4", "init.mp4", "00001.m4s"])
def test_nothing_is_dropped_before_it_is_there(
    store: VideoStore,
    bucket: Bucket,
    metrics: Metrics,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An object that is damaged after its upload is uploaded again, and only then is it dropped."""
    make_video(store, "a")
    run_all(uploader_of(store, bucket))
    bucket.put(f"a/{name}", b"damaged", sha256="0")
    uploader = uploader_of(store, bucket, metrics, drop_local=True)
    store.database.run("UPDATE uploads SET due_at = 0")
    seen: list[int] = []
    drop = uploader.uploads.drop

    def seeing(video_id: str) -> None:
        seen.append(len(bucket.names()))
        drop(video_id)

    monkeypatch.setattr(uploader.uploads, "drop", seeing)
    run_all(uploader)
    assert seen == [4]
    assert local_files(store, "a") == []
    assert store.fragment("a", 1) == segment(1).fragment
    assert len(frames_of(bucket.get("a/video.mp4").content)) == 66
    assert 'failures_total{operation="upload"} 1.0' in metrics.render().decode()
