"""The progress of a request, and how long it will still take."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Literal, NamedTuple

from helios_serve.core.device import Device, Stage
from helios_serve.core.scheduler import Scheduler
from helios_serve.core.session import Session
from helios_serve.core.stage_queue import flow_of
from helios_serve.core.worker_state import WorkerState
from helios_serve.engine.loop.decode_stage import ChunkAssembler
from helios_serve.engine.loop.engine_core import EngineCore
from helios_serve.engine.requests.forecast import Load, Packing, StageForecast, packing_of

Phase = Literal["encoding", "queued", "paused", "denoising", "decoding"]
BUSY: tuple[Stage, ...] = ("denoise", "decode")
"""Stages whose unfinished jobs count as remaining work in full."""


class Progress(NamedTuple):
    """The phase of a request, and the seconds until its last chunk is delivered.

    `queue_position` counts from 1 while the request waits for a worker. `eta_seconds` follows from
    the costs of all requests, the measured rates of the stages and the scheduler's policy. It is
    None until rates have been measured.
    """

    phase: Phase
    queue_position: int | None = None
    eta_seconds: float | None = None


def progress_of(core: EngineCore, request_id: str) -> Progress:
    """Return the progress of a request that has not ended."""
    return progress_of_some(core, [request_id])[request_id]


def progress_of_some(core: EngineCore, request_ids: Sequence[str]) -> dict[str, Progress]:
    """Return the progress of several requests, with one pass over all sessions."""
    remaining = RemainingTime(core)
    return {request_id: progress_with(remaining, core, request_id) for request_id in request_ids}


def progress_with(remaining: "RemainingTime", core: EngineCore, request_id: str) -> Progress:
    session = core.scheduler.sessions.get(request_id)
    assembler = core.decode_stage.assemblers.get(request_id)
    return Progress(
        "decoding" if session is None else phase_of(session, core.scheduler),
        None if session is None else queue_position(session, core.scheduler),
        None if assembler is None else remaining.of(assembler),
    )


def phase_of(session: Session, scheduler: Scheduler) -> Phase:
    if session.clock.is_paused:
        return "paused"
    if not session.is_ready and scheduler.encoding.running(session.session_id):
        return "encoding"
    return "queued" if session.worker_id is None else "denoising"


def queue_position(session: Session, scheduler: Scheduler) -> int | None:
    """Return a position by arrival: the order of fair queueing depends on what others still get."""
    if session.session_id not in scheduler.waiting:
        return None
    arrival = session.clock.arrival
    return sum(other.clock.arrival <= arrival for other in scheduler.waiting)


class Backlog(NamedTuple):
    """The total work of all requests, in order of arrival.

    Each entry of `steps` (FLOPs) and of `pixels` (to decode) is the sum up to and including that
    request.
    """

    arrivals: list[float]
    steps: list[float]
    pixels: list[float]


class RemainingTime:
    """Estimates seconds until requests end, from their costs, measured rates and the policy.

    Estimates hold for the moment of creation. They do not foresee requests that arrive later.
    """

    def __init__(self, core: EngineCore) -> None:
        self.scheduler = core.scheduler
        self.assemblers = core.decode_stage.assemblers
        self.decode_rate = core.scheduler.decoding.rate
        self.now = core.clock()
        devices = core.scheduler.devices.values()
        self.decoders = [device for device in devices if "decode" in device.roles]
        self._by_worker: dict[str, StageForecast] = {}
        self._packings: dict[tuple[str, bool], Packing] = {}
        """By worker, of its priority sessions and of its others."""

    def of(self, assembler: ChunkAssembler) -> float | None:
        """Return the seconds until the request's last chunk is delivered; None without a rate."""
        session = assembler.session
        if session.params.is_endless:
            return None
        worker = self.scheduler.workers.get(session.worker_id or "")
        if not self.decode_rate.value or (worker is not None and not worker.rate):
            return None
        if worker is not None and "decode" in worker.device.roles:
            return self._on_worker(assembler, worker)
        decoding = self._in_decoders(assembler)
        if session.is_planned and not session.in_flight:
            return decoding
        if worker is None:
            return self._in_queue(assembler)
        steps = self._on_worker(assembler, worker)
        return max(steps + self.decode_rate.seconds(session.cost.decode), decoding)

    def _on_worker(self, assembler: ChunkAssembler, worker: WorkerState) -> float:
        """Return the seconds until `worker` has finished all work of the request."""
        forecast = self._by_worker.get(worker.worker_id)
        if forecast is None:
            forecast = self._by_worker[worker.worker_id] = StageForecast(
                self._active_loads(worker),
                self.scheduler.config,
                is_whole=self._packing(worker, is_priority=False).is_whole,
            )
        load = self._load(assembler, worker)
        if not load.chunks:
            return 0.0
        planned = sum(worker.device.plan_time.seconds(plan.cost) for plan in worker.plans)
        seconds = forecast.seconds(load, is_included=not assembler.session.clock.is_paused)
        busy = self._busy(worker.device)
        return max(0.0, (seconds + planned) / self._pace(worker.device) - busy)

    def _in_decoders(self, assembler: ChunkAssembler) -> float:
        """Return the seconds until decode-only workers have finished all work of the request."""
        is_included = not assembler.session.clock.is_paused
        seconds = self._decoding.seconds(self._load(assembler, None), is_included=is_included)
        uses = sum(map(self._pace, self.decoders)) or 1.0
        busy = sum(map(self._busy, self.decoders)) / max(1, len(self.decoders))
        return max(0.0, seconds / uses - busy)

    def _in_queue(self, assembler: ChunkAssembler) -> float | None:
        """Return the seconds until a waiting request ends, if earlier ones are served first."""
        workers = self.scheduler.workers.values()
        rate = sum(worker.rate * self._pace(worker.device) for worker in workers)
        if not rate:
            return None
        last = bisect_right(self._backlog.arrivals, assembler.session.clock.arrival) - 1
        steps = self._backlog.steps[last] / rate
        pixels = self._backlog.pixels[last]
        decode = self.decode_rate.seconds(pixels) / (sum(map(self._pace, self.decoders)) or 1.0)
        is_shared = any("decode" in worker.device.roles for worker in workers)
        return steps + decode if is_shared else max(steps, decode)

    def _active_loads(self, worker: WorkerState | None) -> Iterator[Load]:
        """Yield the loads of a worker's requests; with None, those of all requests on decoders."""
        for assembler in self._active(worker):
            load = self._load(assembler, worker)
            if load.chunks:
                yield load

    def _active(self, worker: WorkerState | None) -> Iterator[ChunkAssembler]:
        """Yield the requests of a worker that are not paused; with None, those of all workers."""
        for assembler in self.assemblers.values():
            session = assembler.session
            if not session.clock.is_paused and (
                worker is None or session.worker_id == worker.worker_id
            ):
                yield assembler

    def _load(self, assembler: ChunkAssembler, worker: WorkerState | None) -> Load:
        """Return a request's load on a worker; with None, on decoders.

        It includes decoding if the worker decodes.
        """
        session, left = assembler.session, assembler.num_left
        flow, cost = flow_of(session), session.cost
        decode = self.decode_rate.seconds(cost.decode)
        if worker is None:
            return Load(flow, left, left * decode)
        packing = self._packing(worker, is_priority=session.is_priority)
        plan_time = worker.device.plan_time
        own = 0.0 if packing.is_whole else 1 / packing.size
        chunk = plan_time.seconds(cost.chunk, own * cost.chunk_steps)
        steps_left = cost.steps_left(session.cursor)
        steps = plan_time.seconds(session.remaining_cost, own * steps_left)
        common = plan_time.fixed * steps_left if packing.is_whole else 0.0
        if "decode" not in worker.device.roles:
            return Load(flow, steps / chunk, steps, offset=common)
        if packing.is_ahead:
            return Load(flow, left, left * decode, steps / chunk, chunk)
        seconds = steps + left * decode
        return Load(flow, seconds / (chunk + decode), seconds, offset=common)

    def _packing(self, worker: WorkerState, *, is_priority: bool) -> Packing:
        """Return how the active sessions of a worker share its plans."""
        key = worker.worker_id, is_priority
        if key not in self._packings:
            active = [
                assembler.session.cost
                for assembler in self._active(worker)
                if assembler.session.is_priority == is_priority
            ]
            self._packings[key] = Packing(1.0, is_whole=False, is_ahead=False)
            if active:
                pixels = sum(cost.decode for cost in active) / len(active)
                decode = self.decode_rate.seconds(pixels)
                if "decode" not in worker.device.roles:
                    decode *= len(self.scheduler.workers) / max(1, len(self.decoders))
                self._packings[key] = packing_of(
                    active, worker.device.plan_time, self.scheduler.config, decode=decode
                )
        return self._packings[key]

    def _pace(self, device: Device) -> float:
        """Return the seconds of work, at the measured rates, that a device does in a second.

        It is less than 1 where messages take time between jobs, and more where jobs overlap. An
        estimate divides by it. So what is left is compared with what was done in the last seconds,
        both at the same rates, and counts in seconds of the clock: rates that are too high or too
        low cancel out.
        """
        recent = device.recent
        if not recent.seconds:
            return 1.0
        work = device.plan_time.seconds(recent.flops, recent.plans)
        work += self.scheduler.encoding.rate.seconds(recent.encoded)
        work += self.scheduler.decoding.rate.seconds(recent.decoded)
        return work / recent.seconds

    def _busy(self, device: Device) -> float:
        """Return the seconds that the device has spent on its unfinished plans and tasks."""
        running = [stage for stage in BUSY if device.is_running(stage)]
        return sum(device.busy(stage, self.now) for stage in running)

    @cached_property
    def _decoding(self) -> StageForecast:
        return StageForecast(self._active_loads(None), self.scheduler.config)

    @cached_property
    def _backlog(self) -> Backlog:
        ending = (item for item in self.assemblers.values() if not item.session.params.is_endless)
        items = sorted(ending, key=lambda item: item.session.clock.arrival)
        return Backlog(
            [item.session.clock.arrival for item in items],
            list(accumulate(item.session.remaining_cost for item in items)),
            list(accumulate(item.num_left * item.session.cost.decode for item in items)),
        )
