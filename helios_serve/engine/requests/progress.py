"""The progress of a request, and how long it will still take."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Literal, NamedTuple

from helios_serve.core.scheduler import Scheduler
from helios_serve.core.session import Session
from helios_serve.core.stage_queue import FlowKey, flow_of
from helios_serve.core.worker_state import WorkerState
from helios_serve.engine.loop.decode_stage import ChunkAssembler
from helios_serve.engine.loop.engine_core import EngineCore
from helios_serve.options.scheduling import SchedulingConfig

Phase = Literal["encoding", "queued", "paused", "denoising", "decoding"]


class Progress(NamedTuple):
    """What happens to a request, and the seconds until its last chunk is delivered.

    `queue_position` counts from 1 for a request that no worker denoises yet. `eta_seconds` follows
    from the pace of the chunks from the second one on. Before, it is estimated from the costs of
    all stages; None until these were measured.
    """

    phase: Phase
    queue_position: int | None = None
    eta_seconds: float | None = None


def progress_of(core: EngineCore, request_id: str) -> Progress:
    """Of a request that has not ended; the scheduler forgets it when its last step is done."""
    return progress_of_some(core, [request_id])[request_id]


def progress_of_some(core: EngineCore, request_ids: Sequence[str]) -> dict[str, Progress]:
    """Of several requests, whose estimates share what is computed over all sessions."""
    costs = StageCosts(core)
    return {request_id: progress_with(costs, core, request_id) for request_id in request_ids}


def progress_with(costs: "StageCosts", core: EngineCore, request_id: str) -> Progress:
    session = core.scheduler.sessions.get(request_id)
    assembler = core.decode_stage.assemblers.get(request_id)
    return Progress(
        "decoding" if session is None else phase_of(session, core.scheduler),
        None if session is None else queue_position(session, core.scheduler),
        None if assembler is None else eta(assembler, costs, core.clock()),
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


def eta(assembler: ChunkAssembler, costs: "StageCosts", now: float) -> float | None:
    """Seconds until the request has delivered its last chunk; None if nothing is known yet."""
    pace, delivered = measured_pace(assembler.delivered_at), assembler.delivered_at
    if pace is None and assembler.session.worker_id is None and not delivered:
        return costs.seconds_in_queue(assembler)
    pace = pace or costs.pace(assembler.session)
    if pace is None:
        return None
    chunks = assembler.params.num_chunks - assembler.next_chunk
    since = now - delivered[-1] if delivered else costs.seconds_spent(assembler.session)
    return chunks * pace - min(since, pace)


def measured_pace(times: Sequence[float]) -> float | None:
    """Seconds from one chunk to the next, from the times of the last ones."""
    return (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else None


class Backlog(NamedTuple):
    """The work of all requests in the order of their arrival.

    Each entry of `steps` (FLOPs) and of `pixels` (to decode) is the sum up to that request.
    """

    arrivals: list[float]
    steps: list[float]
    pixels: list[float]


class StageCosts:
    """Seconds that requests take of the stages, from their costs and the measured rates.

    Valid at the moment at which it was made.
    """

    def __init__(self, core: EngineCore) -> None:
        self.scheduler = core.scheduler
        self.assemblers = core.decode_stage.assemblers
        self.decode_rate = core.scheduler.decoding.rate
        devices = core.scheduler.devices.values()
        self.decoders = max(1, sum("decode" in device.roles for device in devices))
        self._flows_by_worker: dict[str, Counter[FlowKey]] = {}

    def pace(self, session: Session) -> float | None:
        """Seconds from one chunk to the next, as sessions share their worker and the decoders."""
        worker = self.scheduler.workers.get(session.worker_id or "")
        if worker is None or not (worker.rate and self.decode_rate.value):
            return None
        steps = session.cost.chunk / worker.rate / self._step_share(session, worker)
        decode = self.decode_rate.seconds(session.cost.decode)
        if "decode" in worker.device.roles:
            return steps + decode / self._step_share(session, worker)
        share = share_of(session, self.flows, self.scheduler.config)
        return max(steps, decode / share / self.decoders)

    def seconds_spent(self, session: Session) -> float:
        """Seconds that the steps have taken that are done of the chunk under way."""
        worker = self.scheduler.workers.get(session.worker_id or "")
        if worker is None or not worker.rate:
            return 0.0
        whole = session.cost.of_chunk(session.cursor.chunk)
        done = whole - session.cost.left_in_chunk(session.cursor)
        return done / worker.rate / self._step_share(session, worker)

    def seconds_in_queue(self, assembler: ChunkAssembler) -> float | None:
        """Seconds until a waiting request ends, if all that came before it is done before it."""
        workers = self.scheduler.workers.values()
        rate = sum(worker.rate for worker in workers)
        if not (rate and self.decode_rate.value):
            return None
        last = bisect_right(self.backlog.arrivals, assembler.session.clock.arrival) - 1
        steps = self.backlog.steps[last] / rate
        decode = self.decode_rate.seconds(self.backlog.pixels[last]) / self.decoders
        is_shared = any("decode" in worker.device.roles for worker in workers)
        return steps + decode if is_shared else max(steps, decode)

    @cached_property
    def backlog(self) -> Backlog:
        items = sorted(self.assemblers.values(), key=lambda item: item.session.clock.arrival)
        pixels = (
            (item.params.num_chunks - item.next_chunk) * item.session.cost.decode for item in items
        )
        return Backlog(
            [item.session.clock.arrival for item in items],
            list(accumulate(item.session.remaining_cost for item in items)),
            list(accumulate(pixels)),
        )

    @cached_property
    def flows(self) -> Counter[FlowKey]:
        """The flows of all requests."""
        return active_flows(assembler.session for assembler in self.assemblers.values())

    def _step_share(self, session: Session, worker: WorkerState) -> float:
        flows = self._flows_by_worker.get(worker.worker_id)
        if flows is None:
            flows = active_flows(worker.queue.sessions.values())
            self._flows_by_worker[worker.worker_id] = flows
        return share_of(session, flows, self.scheduler.config)


def active_flows(sessions: Iterable[Session]) -> Counter[FlowKey]:
    """The numbers of sessions that are not paused, by flow."""
    return Counter(flow_of(session) for session in sessions if not session.clock.is_paused)


def share_of(session: Session, active: Counter[FlowKey], config: SchedulingConfig) -> float:
    """The part of a stage that `session` gets among `active` flows, even if it is paused itself."""
    mine = flow_of(session)
    flows = active + Counter([mine]) if session.clock.is_paused else active
    members = max(1, flows[mine])
    priority = sum(number for flow, number in flows.items() if flow.is_priority)
    others = {flow: config.weight(*flow) for flow in flows if not flow.is_priority}
    if session.is_priority:
        return (1 - config.batch_share if others else 1.0) / max(1, priority)
    part = config.batch_share if priority else 1.0
    weights = sum((others | {mine: config.weight(*mine)}).values())
    return max(part, 1e-3) * config.weight(*mine) / weights / members
