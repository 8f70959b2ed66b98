"""The engine for asyncio: many readers and models at once, and failures."""

import asyncio
from contextlib import aclosing
from typing import Any

import pytest

from helios_serve.engine.launch import launch
from helios_serve.engine.loop.engine_core import EngineCore
from helios_serve.engine.requests.async_engine import AsyncEngine
from helios_serve.engine.requests.chunk_stream import VideoChunk
from helios_serve.errors import (
    CapacityError,
    EngineDeadError,
    InvalidRequestError,
    RequestFailedError,
)
from helios_serve.model_executor.executor.inline import InlineExecutor
from helios_serve.options.engine import EngineConfig
from helios_serve.options.scheduling import SchedulingConfig, TenantConfig
from helios_serve.options.workers import WorkerConfig, WorkerGroup
from helios_serve.store.video_store import VideoStore
from tests.support.engines import (
    core,
    engine_of,
    fragments,
    frame_numbers,
    idle,
    indices,
    make,
    quick_model,
    read,
    request,
    run,
    undisturbed,
    until,
)

LONG = 33 * 400
"""More frames than a test generates: such a request ends only when it is aborted."""


def test_chunks_come_in_order_with_the_frames_asked_for() -> None:
    """As frames and as segments, from a worker with the real decoder."""
    config = WorkerConfig(device="cpu", history_blocks=500)
    own = launch("nano", (WorkerGroup(config),), "inline")

    async def main() -> tuple[list[VideoChunk], list[VideoChunk]]:
        async with engine_of(own) as engine:
            pixels, segments = await asyncio.gather(
                make(engine, request("pixels", 37)),
                make(engine, request("segments", 37, output="segment", fps=30)),
            )
            return pixels, segments

    pixels, segments = run(main())
    assert indices(pixels) == indices(segments) == [0, 1]
    assert [chunk.frames and chunk.frames.count for chunk in pixels] == [33, 4]
    assert all(chunk.segment is None and chunk.latents and chunk.snapshot for chunk in pixels)
    assert all(chunk.frames is None for chunk in segments)
    parts = [chunk.segment for chunk in segments if chunk.segment is not None]
    assert frame_numbers(parts, fps=30) == list(range(37))


def test_requests_at_once_are_each_what_they_are_alone() -> None:
    wanted = [
        request(f"{frames}-{seed}", frames, seed=seed, output="segment")
        for frames, seed in ((66, 2), (80, 3), (1, 5))
    ]

    async def main() -> list[list[VideoChunk]]:
        async with engine_of(core(workers=2)) as engine:
            return await asyncio.gather(*(make(engine, each) for each in wanted))

    for each, chunks in zip(wanted, run(main()), strict=True):
        assert fragments(chunks) == undisturbed(each)


def test_a_reader_who_leaves_ends_the_request_and_disturbs_nobody() -> None:
    other = request("other", 165, output="segment")
    own = core()

    async def main() -> list[VideoChunk]:
        async with engine_of(own) as engine:
            making = asyncio.create_task(make(engine, other))
            async with aclosing(engine.generate(request("left", LONG))) as chunks:
                assert (await anext(chunks)).index == 0
            await until(lambda: "left" not in own.scheduler.sessions)
            with pytest.raises(InvalidRequestError, match="got request id 'left', expected one"):
                await read(engine, "left")
            return await making

    assert fragments(run(main())) == undisturbed(other)


def test_a_cancelled_reader_ends_the_request() -> None:
    own = core()

    async def main() -> None:
        async with engine_of(own) as engine:
            making = asyncio.create_task(make(engine, request("left", LONG)))
            await until(lambda: "left" in own.scheduler.sessions)
            making.cancel()
            with pytest.raises(asyncio.CancelledError):
                await making

    run(main())


def test_an_abort_ends_all_readers_and_says_so(store: VideoStore) -> None:
    async def main() -> None:
        async with engine_of(core(), store) as engine:
            await engine.submit(request("long", LONG))
            reading = [asyncio.create_task(read(engine, "long")) for _ in range(3)]
            async with aclosing(engine.watch("long")) as chunks:
                await anext(chunks)
                await engine.abort("long")
            for reader in reading:
                with pytest.raises(RequestFailedError, match="^the request was cancelled$"):
                    await reader
            with pytest.raises(RequestFailedError, match="^the request was cancelled$"):
                await read(engine, "long")  # what was made before can still be read
            await engine.abort("long")
            await engine.abort("nobody")
            job = store.job("long")
            assert job is not None
            assert job.status == "cancelled"
            assert store.job("nobody") is None

    run(main())


def test_a_video_whose_chunks_are_all_there_is_not_cancelled_any_more(store: VideoStore) -> None:
    async def main() -> None:
        async with engine_of(core(), store) as engine:
            async with aclosing(engine.generate(request("read", 66))) as chunks:
                while (await anext(chunks)).index < 1:
                    pass
            await until(lambda: is_finished(store, "read"))
            job = store.job("read")
            assert job is not None
            assert job.status == "completed"

    run(main())


def is_finished(store: VideoStore, name: str) -> bool:
    job = store.job(name)
    return job is not None and job.is_finished


def test_what_is_not_stored_can_be_read_once() -> None:
    """By the first reader. Another reader gets the chunks after those that were read."""
    own = core()

    async def main() -> None:
        async with engine_of(own) as engine:
            await engine.submit(request("a", 99))
            async with aclosing(engine.watch("a")) as chunks:
                assert (await anext(chunks)).index == 0
            assert indices(await read(engine, "a")) == [1, 2]
            await engine.submit(request("b", 132))
            first, second = await asyncio.gather(read(engine, "b"), read(engine, "b"))
            assert sorted(indices(first) + indices(second)) == [0, 1, 2, 3]
            await engine.submit(request("c", 66))
            await until(lambda: not own.has_unfinished)
            assert indices(await read(engine, "c")) == [0, 1]
            with pytest.raises(InvalidRequestError, match="expected one that was accepted"):
                await read(engine, "c")

    run(main())


def test_what_is_stored_can_be_read_by_anybody_from_any_chunk(store: VideoStore) -> None:
    wanted = request("a", 99)

    async def main() -> tuple[list[VideoChunk], ...]:
        async with engine_of(core(), store) as engine:
            await engine.submit(wanted)
            during = await asyncio.gather(read(engine, "a"), read(engine, "a", 1))
            return *during, await read(engine, "a"), await read(engine, "a", 2)

    expected = undisturbed(wanted)
    for chunks, first in zip(run(main()), (0, 1, 0, 2), strict=True):
        assert indices(chunks) == list(range(first, 3))
        assert fragments(chunks) == expected[first:]


def test_bad_requests_are_refused_and_leave_nothing(store: VideoStore) -> None:
    bad: dict[str, dict[str, Any]] = {
        "got model 'huge', expected one of: nano, nano-mid": {"model": "huge"},
        "got size 60x64": {"width": 60},
        "got num_frames 0": {"num_frames": 0},
        "got size 512x512, whose history takes": {"width": 512, "height": 512},
    }

    async def main() -> None:
        for resume_point in (None, store):
            mid = core("nano-mid")
            async with engine_of(core(), resume_point, **{"nano-mid": mid}) as engine:
                await make(engine, request("first", 33))
                for message, options in bad.items():
                    frames = options.pop("num_frames", 33)
                    with pytest.raises(InvalidRequestError, match=message):
                        await engine.submit(request("bad", frames, **options))
                    options |= {"num_frames": frames}
                with pytest.raises(InvalidRequestError, match="got request id 'bad', expected one"):
                    await read(engine, "bad")
                assert len(await make(engine, request("bad", 33))) == 1

    run(main())


@pytest.mark.parametrize("is_stored", [False, True])
def test_an_id_is_used_once_at_a_time(is_stored: bool, store: VideoStore) -> None:
    resume_point = store if is_stored else None

    async def main() -> None:
        async with engine_of(core(), resume_point) as engine:
            twice = [engine.submit(request("a", 66)), engine.submit(request("a", 66, seed=4))]
            outcomes = await asyncio.gather(*twice, return_exceptions=True)
            (refused,) = [outcome for outcome in outcomes if outcome is not None]
            assert isinstance(refused, InvalidRequestError)
            assert str(refused) == "got request id 'a', which is in use"
            assert len(await read(engine, "a")) == 2
            if is_stored:  # its video is kept under it
                with pytest.raises(InvalidRequestError, match="which is in use"):
                    await engine.submit(request("a", 66))
                store.delete("a")
            assert len(await make(engine, request("a", 66))) == 2

    run(main())


def test_an_id_that_was_cancelled_and_deleted_is_as_good_as_new(store: VideoStore) -> None:
    """As soon as its plans and tasks have returned from the workers."""
    own, wanted = core(), request("a", 99)

    async def main() -> list[VideoChunk]:
        async with engine_of(own, store) as engine:
            for seed in range(3):
                await engine.submit(request("a", LONG, seed=10 + seed))
                async with aclosing(engine.watch("a")) as chunks:
                    await anext(chunks)
                await engine.abort("a")
                store.delete("a")
                await idle(engine)
            return await make(engine, wanted)

    assert fragments(run(main())) == undisturbed(wanted)


@pytest.mark.parametrize("is_stored", [False, True])
def test_a_cancelled_submission_leaves_nothing(is_stored: bool, store: VideoStore) -> None:
    """At any point of cancellation. The engine and the id can be used afterwards."""
    own, resume_point = core(), store if is_stored else None

    async def main() -> None:
        async with engine_of(own, resume_point) as engine:
            for turns in range(12):
                submitting = asyncio.create_task(engine.submit(request("a", LONG)))
                for _ in range(turns):
                    await asyncio.sleep(0)
                if submitting.cancel():
                    with pytest.raises(asyncio.CancelledError):
                        await submitting
                    if is_stored:  # what is stored is accepted: its reader may be another one
                        await engine.abort("a")
                        store.delete("a")
                else:
                    await submitting
                    await engine.abort("a")
                    store.delete("a")
                assert not own.has_unfinished
                assert not store.jobs()
                await idle(engine)  # an id is in use until no worker has a task or a step of it
                assert not own.scheduler.sessions
            assert not engine.models.failures

    run(main())


def test_two_models_work_at_once() -> None:
    def wanted(model: str | None) -> Any:
        return request(f"of {model}", 66, output="segment", model=model)

    async def main() -> list[list[VideoChunk]]:
        async with engine_of(core(), None, **{"nano-mid": core("nano-mid")}) as engine:
            videos = await asyncio.gather(
                *(make(engine, wanted(model)) for model in ("nano", "nano-mid", None))
            )
            assert (await engine.models.stats()).keys() == {"nano", "nano-mid"}
            return videos

    nano, mid, default = run(main())
    assert fragments(nano) == fragments(default) == undisturbed(wanted("nano"))
    assert fragments(mid) == undisturbed(wanted("nano-mid")) != fragments(nano)


def broken_core() -> EngineCore:
    """Return an engine whose workers cannot start."""

    def make_worker(*_: object) -> Any:
        raise RuntimeError("no such card")

    config = EngineConfig(workers=(WorkerConfig(device="cpu"),))
    return EngineCore(InlineExecutor(make_worker), quick_model().config, config)


@pytest.mark.parametrize("is_stored", [False, True])
def test_an_engine_that_fails_tells_everybody(is_stored: bool, store: VideoStore) -> None:
    message = "no worker can be started to encode: RuntimeError: no such card"

    async def main() -> None:
        broken, resume_point = broken_core(), store if is_stored else None
        async with AsyncEngine({"broken": broken, "nano": core()}, resume_point) as engine:
            names = ("a", "b", "c")
            outcomes = await asyncio.gather(
                *(make(engine, request(name)) for name in names), return_exceptions=True
            )
            texts = {str(outcome) for outcome in outcomes}
            # A stored request that could not be started any more waits for another engine.
            waits = {"the video has stopped at chunk 0; it resumes after a restart"}
            assert texts <= ({message} | waits if is_stored else {message})
            assert {type(outcome) for outcome in outcomes} <= {RequestFailedError, EngineDeadError}
            assert engine.models.failures == {"broken": message}
            for call in (
                engine.submit(request("d")),
                engine.models.add_worker(),
                engine.models.drain_worker("inline-0"),
            ):
                with pytest.raises(EngineDeadError, match=message):
                    await call
            assert (
                (await engine.models.stats()).keys()
                == (await engine.models.workers()).keys()
                == {"nano"}
            )
            assert len(await make(engine, request("e", model="nano"))) == 2
            if is_stored:  # kept for an engine that works
                left = {job.status for job in store.jobs() if job.id in names}
                assert left <= {"queued"}

    run(main())


def test_a_fault_of_the_engine_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    own = core()

    async def main() -> None:
        async with AsyncEngine({"nano": own}) as engine:
            reading = asyncio.create_task(make(engine, request("a", LONG)))
            await until(lambda: "a" in own.scheduler.sessions)
            monkeypatch.setattr(own.worker_pool, "check", lambda: 1 / 0)
            with pytest.raises(RequestFailedError, match="^ZeroDivisionError: division by zero$"):
                await reading
            with pytest.raises(EngineDeadError, match="^ZeroDivisionError: division by zero$"):
                await engine.submit(request("b"))

    run(main())


def test_closing_ends_what_runs() -> None:
    own = core()

    async def main() -> None:
        async with AsyncEngine({"nano": own}) as engine:
            reading = asyncio.create_task(make(engine, request("a", LONG)))
            await until(lambda: "a" in own.scheduler.sessions)
        with pytest.raises(RequestFailedError, match="^the engine was closed$"):
            await reading
        with pytest.raises(EngineDeadError, match="^the engine is closed$"):
            await engine.submit(request("b"))
        await engine.abort("a")
        assert await engine.models.stats() == {}

    run(main())


@pytest.mark.parametrize("is_stored", [False, True])
def test_a_request_beyond_a_limit_is_refused_and_not_kept(
    is_stored: bool, store: VideoStore
) -> None:
    limits = {"few": TenantConfig(max_sessions=1)}
    own = core(scheduling=SchedulingConfig(tenants=limits))
    message = r"^tenant few has reached its limit: 1 sessions \(limit 1\)$"

    async def main() -> None:
        async with engine_of(own, store if is_stored else None) as engine:
            wanted = [request(name, LONG, tenant="few") for name in ("a", "b", "c")]
            outcomes = await asyncio.gather(
                *(engine.submit(each) for each in wanted[:2]), return_exceptions=True
            )
            assert outcomes.count(None) == 1
            with pytest.raises(CapacityError, match=message):
                await engine.submit(wanted[2])
            assert len(store.jobs()) == is_stored
            for each in wanted:
                await engine.abort(each.request_id)

    run(main())


def test_counts_and_workers_are_told() -> None:
    own = core(workers=2)

    async def main() -> None:
        async with engine_of(own) as engine:
            await make(engine, request("a", 33))
            (reports,) = (await engine.models.workers()).values()
            assert [report.worker_id for report in reports] == ["inline-0", "inline-1"]
            assert {report.roles for report in reports} == {("encode", "denoise", "decode")}
            await until(lambda: own.stats().workers == 2)
            assert await engine.models.add_worker() == "inline-2"
            await until(lambda: own.stats().workers == 3)
            await engine.submit(request("b", LONG))
            await until(lambda: own.stats().scheduler.running == 1)
            (stats,) = (await engine.models.stats()).values()
            assert (stats.workers, stats.scheduler.running, stats.scheduler.waiting) == (3, 1, 0)
            await until(lambda: own.stats().scheduler.used_blocks > 0)  # after the first chunk
            (reports,) = (await engine.models.workers()).values()
            (busy,) = [report.worker_id for report in reports if report.sessions]
            await engine.models.drain_worker(busy)  # its session goes on elsewhere
            await until(lambda: own.stats().workers == 2)
            left = [report.worker_id for report in (await engine.models.workers())["nano"]]
            await engine.models.drain_worker(left[0])
            with pytest.raises(InvalidRequestError, match=f"got worker '{left[1]}', which is the"):
                await engine.models.drain_worker(left[1])
            with pytest.raises(InvalidRequestError, match="got worker 'x', expected one of"):
                await engine.models.drain_worker("x")
            async with aclosing(engine.watch("b", 5)) as chunks:
                await anext(chunks)
            await engine.abort("b")

    run(main())
