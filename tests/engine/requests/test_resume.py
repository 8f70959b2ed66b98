"""Engines that stop and disks that fail: no video is lost, and repeated chunks are equal."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helios_serve.engine.loop.engine_core import EngineCore
from helios_serve.engine.requests.async_engine import AsyncEngine
from helios_serve.engine.requests.chunk_stream import VideoChunk
from helios_serve.errors import CapacityError, RequestFailedError, StorageError
from helios_serve.model_executor.executor.inline import InlineExecutor
from helios_serve.options.sampling import PromptSwitch
from helios_serve.options.scheduling import SchedulingConfig, TenantConfig
from helios_serve.store.job_files import SegmentStore
from helios_serve.store.jobs import JobStore
from helios_serve.store.video_store import VideoStore
from helios_serve.video_request import Frames, VideoRequest
from tests.support.engines import (
    core,
    fragments,
    job_status,
    make,
    num_stored,
    opened,
    quick_model,
    read,
    request,
    run,
    store_of,
    undisturbed,
    until,
)

FRAMES = 33 * 4


async def check(engine: AsyncEngine, *wanted: VideoRequest) -> None:
    """Run all videos to their ends, and compare each chunk with an undisturbed run."""
    videos = await asyncio.gather(*(read(engine, each.request_id) for each in wanted))
    for each, chunks in zip(wanted, videos, strict=True):
        expected = EXPECTED[each.request_id]
        assert [chunk.index for chunk in chunks] == list(range(len(expected)))
        assert fragments(chunks) == expected
        assert job_status(engine, each.request_id) == "completed"


EXPECTED: dict[str, list[bytes]] = {}


def image() -> Frames:
    pixels = np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return Frames(pixels.tobytes(), 1, 64, 64)


def wanted(name: str, frames: int = FRAMES, **options: Any) -> VideoRequest:
    """Return a request that pauses after its first chunks until it is read."""
    made = request(name, frames, max_lead_chunks=1, **options)
    EXPECTED[name] = undisturbed(made)
    return made


def test_a_stopped_engine_goes_on_where_it_was(tmp_path: Path) -> None:
    """Stopped repeatedly, with T2V, I2V and a prompt switch."""
    videos = (
        wanted("plain"),
        wanted("image", image=image(), seed=4),
        wanted("switch", switches=(PromptSwitch(2, "a red ball"),), seed=5),
    )

    async def main() -> None:
        async with opened(tmp_path) as engine:
            for each in videos:
                await engine.submit(each)
            for each in videos:
                await until(lambda name=each.request_id: num_stored(engine, name) >= 1)  # type: ignore[misc]
        async with opened(tmp_path) as engine:
            before = {each.request_id: num_stored(engine, each.request_id) for each in videos}
            assert set(before.values()) == {1}
            for name, had in before.items():
                await until(lambda name=name, had=had: num_stored(engine, name) > had)  # type: ignore[misc]
            assert {job.status for job in store_of(engine).jobs()} == {"in_progress"}
        async with opened(tmp_path) as engine:
            await check(engine, *videos)
        async with opened(tmp_path) as engine:
            await check(engine, *videos)  # from the disk alone
            assert store_of(engine).unfinished() == []

    run(main())


def test_a_video_of_which_nothing_was_made_begins_anew(tmp_path: Path) -> None:
    videos = wanted("plain", 33), wanted("image", 33, image=image(), seed=4)
    broken = EngineCore(InlineExecutor(no_worker), quick_model().config)

    async def main() -> None:
        async with opened(tmp_path, broken) as engine:
            await asyncio.gather(*map(engine.submit, videos), return_exceptions=True)
            await until(lambda: bool(engine.models.failures))
        async with opened(tmp_path) as engine:
            names = [job.id for job in store_of(engine).jobs()]
            await check(engine, *(each for each in videos if each.request_id in names))

    run(main())


def no_worker(*_: object) -> Any:
    raise RuntimeError("no such card")


def test_a_video_that_was_complete_but_for_a_word_is_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = wanted("plain", 66)

    async def main() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(VideoStore, "finish", lambda *_: None)
            async with opened(tmp_path) as engine:
                await make(engine, plain)
                assert job_status(engine, "plain") == "in_progress"
        async with opened(tmp_path) as engine:
            assert job_status(engine, "plain") == "completed"
            await check(engine, plain)
            assert not engine.models.cores["nano"].has_unfinished

    run(main())


def test_a_switch_outlives_the_process_that_was_told_of_it(tmp_path: Path) -> None:
    async def main() -> tuple[PromptSwitch, list[VideoChunk]]:
        async with opened(tmp_path) as engine:
            await engine.submit(request("a", FRAMES, max_lead_chunks=1))
            await until(lambda: num_stored(engine, "a") >= 1)
            switch = await engine.switch_prompt("a", "a red ball", transition_chunks=2)
        async with opened(tmp_path) as engine:
            assert num_stored(engine, "a") <= switch.chunk
            return switch, await read(engine, "a")

    switch, chunks = run(main())
    assert fragments(chunks) == undisturbed(request("a", FRAMES, switches=(switch,)))


def failing(
    function: Callable[..., Any], fails: Callable[..., bool], error: Exception
) -> Callable[..., Any]:
    """Wrap `function`: it raises `error` if `fails` is true for its arguments."""

    def call(store: object, *args: Any, **options: Any) -> Any:
        if fails(*args):
            raise error
        return function(store, *args, **options)

    return call


FULL = StorageError("cannot write 00001.m4s: No space left on device")


@pytest.mark.parametrize(
    ("owner", "name", "chunk", "error", "message"),
    [
        pytest.param(SegmentStore, "put", 0, FULL, str(FULL), id="first-file"),
        pytest.param(SegmentStore, "put", 3, FULL, str(FULL), id="last-file"),
        pytest.param(JobStore, "advance", 1, FULL, str(FULL), id="table"),
        pytest.param(SegmentStore, "put", 1, ValueError("ours"), "ValueError: ours", id="fault"),
    ],
)
def test_a_disk_that_fails_ends_the_video_for_now(
    owner: type,
    name: str,
    error: Exception,
    message: str,
    chunk: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If a chunk cannot be stored, later ones are not stored either, and the video is not
    completed.

    It resumes after a restart.
    """
    bad, good = wanted("bad", 132), wanted("good", 132, seed=4)
    own = core()

    async def main() -> None:
        with monkeypatch.context() as patch:
            at = lambda job, at, *_: (getattr(job, "id", job), at) == ("bad", chunk)  # noqa: E731
            patch.setattr(owner, name, failing(getattr(owner, name), at, error))
            async with opened(tmp_path, own) as engine:
                await asyncio.gather(engine.submit(bad), engine.submit(good))
                readers = [asyncio.create_task(read(engine, "bad")) for _ in range(2)]
                await check(engine, good)
                for reader in readers:
                    with pytest.raises(RequestFailedError, match=f"^{message}$"):
                        await reader
                await until(lambda: not own.scheduler.sessions)
                assert own.stats().scheduler.used_blocks == 0
                late = f"^the video has stopped at chunk {chunk}; it resumes after a restart$"
                with pytest.raises(RequestFailedError, match=late):
                    await read(engine, "bad")
                assert (job_status(engine, "bad"), num_stored(engine, "bad")) == (
                    "in_progress" if chunk else "queued",
                    chunk,
                )
        async with opened(tmp_path) as engine:
            await check(engine, bad, good)

    run(main())


def test_a_request_that_cannot_be_stored_is_not_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = wanted("short", 33)

    async def main() -> None:
        async with opened(tmp_path) as engine:
            with monkeypatch.context() as patch:
                patch.setattr(JobStore, "add_all", failing(JobStore.add_all, lambda *_: True, FULL))
                with pytest.raises(StorageError, match="No space left on device"):
                    await engine.submit(short)
            assert store_of(engine).jobs() == []
            await engine.submit(short)
            await check(engine, short)

    run(main())


def test_what_has_ended_is_not_taken_up(tmp_path: Path) -> None:
    own = core()

    async def main() -> None:
        async with opened(tmp_path) as engine:
            for name in ("cancelled", "stopped"):
                await engine.submit(request(name, FRAMES, max_lead_chunks=1))
                await until(lambda name=name: num_stored(engine, name) >= 1)  # type: ignore[misc]
            await engine.submit(request("failed", 33, lora="no/such/file"))
            with pytest.raises(RequestFailedError, match="got LoRA 'no/such/file'"):
                await read(engine, "failed")
            await engine.abort("cancelled")
        async with opened(tmp_path, own) as engine:
            assert own.scheduler.sessions.keys() == {"stopped"}
            assert job_status(engine, "cancelled") == "cancelled"
            assert job_status(engine, "failed") == "failed"
            with pytest.raises(RequestFailedError, match="^the request was cancelled$"):
                await read(engine, "cancelled")
            with pytest.raises(RequestFailedError, match="got LoRA 'no/such/file'"):
                await read(engine, "failed")

    run(main())


def test_an_extension_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if not even the repeated chunk, inside which the first video ended, is stored."""
    expected = undisturbed(request("x", FRAMES))
    cut = request("cut", 80)

    async def main() -> None:
        with monkeypatch.context() as patch:
            at = lambda job_id, *_: job_id == "early"  # noqa: E731
            patch.setattr(SegmentStore, "put", failing(SegmentStore.put, at, FULL))
            async with opened(tmp_path) as engine:
                await make(engine, cut)
                await engine.submit(request("early", FRAMES), extends="cut")
                reading = asyncio.create_task(read(engine, "early"))  # before it fails
                await engine.submit(request("late", FRAMES, max_lead_chunks=1), extends="cut")
                with pytest.raises(RequestFailedError, match="No space left"):
                    await reading
                await until(lambda: num_stored(engine, "late") >= 3)
                assert num_stored(engine, "late") < 4
        async with opened(tmp_path) as engine:
            for name in ("early", "late"):
                chunks = await read(engine, name)
                assert [chunk.index for chunk in chunks] == [0, 1, 2, 3]
                assert fragments(chunks) == expected

    run(main())


def test_children_go_on_where_they_were(tmp_path: Path) -> None:
    names = ("first", "second")
    children = [request(name, FRAMES, max_lead_chunks=1) for name in names]

    async def main() -> None:
        async with opened(tmp_path) as engine:
            await engine.submit(request("parent", FRAMES, max_lead_chunks=1))
            await until(lambda: num_stored(engine, "parent") >= 1)
            await engine.pause("parent")
            await engine.fork("parent", lambda _: children)
            starts = [store_of(engine).resume_point(name) for name in names]
            begun = num_stored(engine, "parent")
            for name in names:
                await until(lambda name=name: num_stored(engine, name) > begun)  # type: ignore[misc]
                assert num_stored(engine, name) < 4
        async with AsyncEngine({"": core()}) as engine:
            expected = []
            for child, resume_point in zip(children, starts, strict=True):
                assert resume_point is not None
                await engine.submit(
                    request(child.request_id, FRAMES, output="segment"),
                    continue_from=resume_point.snapshot,
                )
                expected.append(fragments(await read(engine, child.request_id)))
        assert expected[0] != expected[1]
        async with opened(tmp_path) as engine:
            for name, right in zip(names, expected, strict=True):
                chunks = await read(engine, name)
                assert [chunk.index for chunk in chunks] == [0, 1, 2, 3]
                assert fragments(chunks)[-len(right) :] == right, "the first ones are the parent's"

    run(main())


def test_a_video_waits_for_its_model(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Another model does not resume it, even if the request named no model."""
    plain, message = wanted("plain"), "^the video has stopped at chunk 1; it resumes after a re"

    async def main() -> None:
        async with opened(tmp_path) as engine:
            await engine.submit(plain)
            await until(lambda: num_stored(engine, "plain") >= 1)
        async with opened(tmp_path, model="nano-mid") as engine:
            with pytest.raises(RequestFailedError, match=message):
                await read(engine, "plain")
            assert "job plain waits: its model 'nano' is not served" in caplog.messages
        async with opened(tmp_path) as engine:
            await check(engine, plain)

    run(main())


def test_a_video_that_its_model_cannot_make_any_more_fails(tmp_path: Path) -> None:
    plain = wanted("plain")

    async def main() -> None:
        async with opened(tmp_path) as engine:
            await engine.submit(plain)
            await until(lambda: num_stored(engine, "plain") >= 1)
        async with opened(tmp_path, core("nano-base")) as engine:
            with pytest.raises(RequestFailedError, match="got 3 step counts"):
                await read(engine, "plain")
            assert job_status(engine, "plain") == "failed"

    run(main())


def test_what_was_accepted_is_made_also_under_narrower_limits(tmp_path: Path) -> None:
    videos = [wanted(name, 66, seed=seed) for seed, name in enumerate(("a", "b", "c"))]
    narrow = core(
        scheduling=SchedulingConfig(max_queued=1, tenant_defaults=TenantConfig(max_sessions=1))
    )

    async def main() -> None:
        async with opened(tmp_path) as engine:
            for each in videos:
                await engine.submit(each)
        async with opened(tmp_path, narrow) as engine:
            with pytest.raises(CapacityError):
                await engine.submit(request("d"))
            await check(engine, *videos)

    run(main())
