"""Accounting of time and frames."""

import asyncio
from collections import Counter, defaultdict
from contextlib import closing
from datetime import date
from pathlib import Path
from typing import Any

import msgspec
import pytest

from helios_serve.core.cost import stage_step_cost
from helios_serve.core.session import Session
from helios_serve.engine.loop.decode_stage import ChunkAssembler
from helios_serve.engine.loop.engine_core import EngineCore
from helios_serve.engine.loop.events import ChunkReady
from helios_serve.engine.requests.async_engine import AsyncEngine
from helios_serve.errors import CapacityError, InvalidRequestError, NotAllowedError
from helios_serve.messages import (
    ChunkDecoded,
    ChunkResult,
    InputsEncoded,
    StepCursor,
    StepsDone,
)
from helios_serve.model_config import Geometry
from helios_serve.options.scheduling import SchedulingConfig, TenantConfig
from helios_serve.stage_seconds import StageSeconds
from helios_serve.store.usage import DayUsage
from helios_serve.store.video_store import VideoStore
from tests.support.engines import core, make, quick_model, read, request, run, until

WIDTHS = {"narrow": 64, "wide": 128}
ENCODE_SECONDS, DECODE_SECONDS = 10.0, 100.0


def usage(store: VideoStore, tenant: str) -> DayUsage:
    """Return the usage of all days together, because a test may run over midnight."""
    days = store.usage(tenant, date.min, date.max)
    sums = [
        sum(values)
        for values in zip(*(msgspec.structs.astuple(day)[1:] for day in days), strict=True)
    ]
    return DayUsage(date.min, *sums)


def in_seconds(
    own: EngineCore, monkeypatch: pytest.MonkeyPatch
) -> list[frozenset[tuple[str, StepCursor]]]:
    """Let each plan with steps take 1 s, each encode task 10 s and each decode task 100 s.

    Returns a list to which the sessions of each plan are appended.
    """
    poll, plans = own.executor.poll, []

    def listen(timeout: float) -> list[Any]:
        seen: Counter[str] = Counter()
        told = []
        for received in poll(timeout):
            if isinstance(received.event, StepsDone):
                worker = received.worker_id
                plan = own.worker_pool.workers[worker].plans[seen[worker]]
                seen[worker] += 1
                steps = plan.output.scheduled_steps
                if steps:
                    plans.append(frozenset((step.session_id, step.cursor) for step in steps))
                received = received._replace(
                    event=msgspec.structs.replace(received.event, seconds=1.0)
                )
            seconds = {InputsEncoded: ENCODE_SECONDS, ChunkDecoded: DECODE_SECONDS}
            if (task := seconds.get(type(received.event))) is not None:
                event: Any = received.event
                received = received._replace(event=msgspec.structs.replace(event, seconds=task))
            told.append(received)
        return told

    monkeypatch.setattr(own.executor, "poll", listen)
    return plans


def test_a_steps_time_is_shared_by_cost(store: VideoStore, monkeypatch: pytest.MonkeyPatch) -> None:
    own = core()
    plans = in_seconds(own, monkeypatch)
    config = own.model_config

    async def main() -> None:
        async with AsyncEngine({"nano": own}, store) as engine:
            wanted = [
                request(name, 66, prompt=name, width=width, tenant=name)
                for name, width in WIDTHS.items()
            ]
            await asyncio.gather(*(make(engine, each) for each in wanted))

    run(main())
    expected: defaultdict[str, float] = defaultdict(float)
    for plan in plans:
        costs = {
            name: stage_step_cost(config, Geometry(64, WIDTHS[name]), cursor.stage, 1)
            for name, cursor in plan
        }
        for name, cost in costs.items():
            expected[name] += cost / sum(costs.values())
    for name in WIDTHS:
        expected[name] += ENCODE_SECONDS + 2 * DECODE_SECONDS
    got = {name: usage(store, name).device_seconds for name in WIDTHS}
    assert got == pytest.approx(expected)
    tasks = len(WIDTHS) * (ENCODE_SECONDS + 2 * DECODE_SECONDS)
    assert sum(got.values()) == pytest.approx(len(plans) + tasks)
    assert any(len(plan) == 2 for plan in plans), "nothing was shared"


def test_a_video_waits_until_its_first_step() -> None:
    """Encoding does not count as waiting. The time of a chunk is reported with it, once."""
    wanted = request("a", 66)
    config = quick_model().config
    assembler = ChunkAssembler(Session(wanted, wanted.resolve(config), config, arrival=5.0), 0)
    assembler.spend_on_inputs(0.5)
    assembler.begin(9.0)
    assembler.begin(12.0)
    ready: list[ChunkReady] = []
    for chunk in range(2):
        assembler.spend(StepCursor(chunk, 0, 0), 2.0)
        assembler.receive(ChunkResult("a", chunk, None, None))  # type: ignore[arg-type]
        ready += assembler.receive_decoded(ChunkDecoded("a", chunk, seconds=0.25))
    assert [item.spent for item in ready] == [
        StageSeconds(queue=3.5, encode=0.5, denoise=2.0, decode=0.25),
        StageSeconds(denoise=2.0, decode=0.25),
    ]


def test_a_step_that_is_taken_again_counts_once() -> None:
    wanted = request("a", 66)
    config = quick_model().config
    assembler = ChunkAssembler(Session(wanted, wanted.resolve(config), config, arrival=0.0), 0)
    assembler.spend_on_inputs(0.25)
    for chunk in range(2):
        for _ in range(2):
            assembler.spend(StepCursor(chunk, 0, 0), 1.0)
            assembler.spend(StepCursor(chunk, 2, 1), 0.5)
    for chunk in range(2):
        assembler.receive(ChunkResult("a", chunk, None, None))  # type: ignore[arg-type]
    ready: list[ChunkReady] = []
    for chunk in (1, 0):
        ready += assembler.receive_decoded(ChunkDecoded("a", chunk, seconds=0.5))
    assert [(item.chunk, item.spent.on_workers) for item in ready] == [(0, 2.25), (1, 2.0)]


def test_a_restart_counts_every_frame_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine is stopped during a video, whose next chunk may have been started."""
    wanted = request("a", 198, max_lead_chunks=1, tenant="acme")
    chunk_seconds = 3 + DECODE_SECONDS

    async def start(folder: Path) -> None:
        own = core()
        in_seconds(own, monkeypatch)
        with closing(VideoStore(folder)) as store:
            async with AsyncEngine({"nano": own}, store) as engine:
                await engine.submit(wanted)
                await until(lambda: len(store.segments("a")) >= 1)
            stored = len(store.segments("a"))
            assert stored < 6
            counted = usage(store, "acme")
            assert (counted.requests, counted.granted, counted.frames) == (1, 198, 33 * stored)
            assert counted.device_seconds == ENCODE_SECONDS + chunk_seconds * stored

    async def go_on(folder: Path) -> None:
        own = core()
        in_seconds(own, monkeypatch)
        with closing(VideoStore(folder)) as store:
            async with AsyncEngine({"nano": own}, store) as engine:
                await read(engine, "a")
            seconds = ENCODE_SECONDS + 198 // 33 * chunk_seconds
            assert usage(store, "acme") == DayUsage(date.min, 1, 198, 198, seconds)

    run(start(tmp_path))
    run(go_on(tmp_path))


def test_what_a_tenant_may_not_have_is_refused_and_not_counted(store: VideoStore) -> None:
    limits = TenantConfig(tiers=("default",), sizes=("64x64",), frames_per_day=100, max_sessions=1)
    own = core(scheduling=SchedulingConfig(tenants={"acme": limits}))

    async def main() -> None:
        async with AsyncEngine({"nano": own}, store) as engine:
            with pytest.raises(NotAllowedError, match="got service_tier flex"):
                await engine.submit(request("a", tenant="acme", tier="flex"))
            with pytest.raises(InvalidRequestError, match="got size 128x64"):
                await engine.submit(request("a", tenant="acme", width=128))
            outcomes = await asyncio.gather(
                *(engine.submit(request(name, 50, tenant="acme")) for name in "abc"),
                return_exceptions=True,
            )
            assert Counter(map(type, outcomes)) == {CapacityError: 2, type(None): 1}
            assert usage(store, "acme").granted == 50
            (accepted,) = (job.id for job in store.jobs())
            await read(engine, accepted)
            with pytest.raises(CapacityError, match="has requested 50 of its 100"):
                await engine.submit(request("d", 101, tenant="acme"), extends=accepted)
            await engine.models.set_tenants(
                {"acme": TenantConfig(frames_per_day=101)}, TenantConfig()
            )
            await engine.submit(request("d", 101, tenant="acme", tier="flex"), extends=accepted)
            await read(engine, "d")
            counted = usage(store, "acme")
            assert (counted.requests, counted.granted, counted.frames) == (2, 101, 101)

    run(main())


def test_frames_of_an_aborted_video_are_given_back(store: VideoStore) -> None:
    own = core()

    async def main() -> None:
        async with AsyncEngine({"nano": own}, store) as engine:
            await engine.submit(request("a", 33 * 40, max_lead_chunks=1, tenant="acme"))
            await until(lambda: len(store.segments("a")) >= 1)
            await engine.abort("a")
            counted = usage(store, "acme")
            assert counted.granted == counted.frames == 33 * len(store.segments("a"))
            assert 0 < counted.frames < 33 * 40

    run(main())
