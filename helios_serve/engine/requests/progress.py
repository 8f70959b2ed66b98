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
from helios_serve.engine.requests.forecast import Load, StageForecast

Phase = Literal["encoding", "queued", "paused", "denoising", "decoding"]
BUSY: tuple[Stage, ...] = ("denoise", "decode")
"""Stages whose jobs under way count as remaining work until they end."""


class Progress(NamedTuple):
    """What happens to a request, and the seconds until its last chunk is delivered.

    `queue_position` counts from 1 for a request that no worker denoises yet. `eta_seconds` follows
    from the costs of all requests, the measured rates of the stages and the scheduler's policy;
    None until the rates were measured.
    """

    phase: Phase
    queue_position: int | None = None
    eta_seconds: float | None = None


def progress_of(core: EngineCore, request_id: str) -> Progress:
    """Of a request that has not ended; the scheduler forgets it when its last step is done."""
    return progress_of_some(core, [request_id])[request_id]


def progress_of_some(core: EngineCore, request_ids: Sequence[str]) -> dict[str, Progress]:
    """Of several requests, whose estimates share what is computed over all sessions."""
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
    """By arrival, since the fair order depends on the service that others still get."""
    if session.session_id not in scheduler.waiting:
        return None
    arrival = session.clock.arrival
    return sum(other.clock.arrival <= arrival for other in scheduler.waiting)


class Backlog(NamedTuple):
    """The work of all requests in the order of their arrival.

    Each entry of `steps` (FLOPs) and of `pixels` (to decode) is the sum up to that request.
    """

    arrivals: list[float]
    steps: list[float]
    pixels: list[float]


class RemainingTime:
    """Seconds until requests end, from what they cost, the measured rates and the policy.

    Valid at the moment at which it was made, in seconds of the engine's clock. Requests that arrive
    later are not foreseen.
    """

    def __init__(self, core: EngineCore) -> None:
        self.scheduler = core.scheduler
        self.assemblers = core.decode_stage.assemblers
        self.decode_rate = core.scheduler.decoding.rate
        self.now = core.clock()
        devices = core.scheduler.devices.values()
        self.decoders = [device for device in devices if "decode" in device.roles]
        self._by_worker: dict[str, StageForecast] = {}

    def of(self, assembler: ChunkAssembler) -> float | None:
        """Seconds until the request has delivered its last chunk; None if no rate is known."""
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
        """Seconds until its worker has done all for the request."""
        forecast = self._by_worker.get(worker.worker_id)
        if forecast is None:
            forecast = self._by_worker[worker.worker_id] = StageForecast(
                self._active_loads(worker), self.scheduler.config
            )
        load = self._load(assembler, worker)
        if not load.chunks:
            return 0.0
        planned = sum(plan.cost for plan in worker.plans) / worker.rate
        seconds = forecast.seconds(load, is_included=not assembler.session.clock.is_paused)
        return max(0.0, seconds + planned - self._busy(worker.device))

    def _in_decoders(self, assembler: ChunkAssembler) -> float:
        """Seconds until decoders that do nothing else have done all for the request."""
        is_included = not assembler.session.clock.is_paused
        seconds = self._decoding.seconds(self._load(assembler, None), is_included=is_included)
        busy = sum(self._busy(device) for device in self.decoders)
        return max(0.0, seconds - busy) / max(1, len(self.decoders))

    def _in_queue(self, assembler: ChunkAssembler) -> float | None:
        """Seconds until a waiting request ends, if all that came before it is done before it."""
        workers = self.scheduler.workers.values()
        rate = sum(worker.rate for worker in workers)
        if not rate:
            return None
        last = bisect_right(self._backlog.arrivals, assembler.session.clock.arrival) - 1
        steps = self._backlog.steps[last] / rate
        pixels = self._backlog.pixels[last]
        decode = self.decode_rate.seconds(pixels) / max(1, len(self.decoders))
        is_shared = any("decode" in worker.device.roles for worker in workers)
        return steps + decode if is_shared else max(steps, decode)

    def _active_loads(self, worker: WorkerState | None) -> Iterator[Load]:
        """Of the requests of a worker, or of all for the decoders."""
        for assembler in self.assemblers.values():
            session = assembler.session
            if session.clock.is_paused or not (
                worker is None or session.worker_id == worker.worker_id
            ):
                continue
            load = self._load(assembler, worker)
            if load.chunks:
                yield load

    def _load(self, assembler: ChunkAssembler, worker: WorkerState | None) -> Load:
        """What a request takes of a worker, decoding included if that decodes, or of decoders."""
        session, left = assembler.session, assembler.num_left
        chunk = seconds = 0.0
        if worker is None or "decode" in worker.device.roles:
            chunk = self.decode_rate.seconds(session.cost.decode)
            seconds = left * chunk
        if worker is not None:
            chunk += session.cost.chunk / worker.rate
            seconds += session.remaining_cost / worker.rate
        return Load(flow_of(session), seconds / chunk, seconds)

    def _busy(self, device: Device) -> float:
        """Seconds that the device has spent on plans and decode tasks which it is still at."""
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
