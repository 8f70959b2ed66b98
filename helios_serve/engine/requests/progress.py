"""The progress of a request."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from helios_serve.core.scheduler import Scheduler
from helios_serve.core.session import Session
from helios_serve.engine.loop.engine_core import EngineCore

Phase = Literal["encoding", "queued", "paused", "denoising", "decoding"]


class Progress(NamedTuple):
    """Denoise steps done, and in all; planned steps count when they have returned.

    `queue_position` counts from 1 for a request that waits for a worker. `eta_seconds` is estimated
    from the worker's measured rate and the number of its sessions; None before a measurement.
    """

    phase: Phase
    steps_done: int
    total_steps: int
    queue_position: int | None = None
    eta_seconds: float | None = None


def progress_of(core: EngineCore, request_id: str) -> Progress:
    """Of a request that has not ended; the scheduler forgets it when its last step is done."""
    scheduler = core.scheduler
    session = scheduler.sessions.get(request_id)
    if session is None:
        return Progress("decoding", 1, 1)
    return Progress(
        phase_of(session),
        steps_before(session) - session.in_flight,
        session.params.total_steps,
        queue_position(session, scheduler),
        eta(session, scheduler),
    )


def progress_of_some(core: EngineCore, request_ids: Sequence[str]) -> dict[str, Progress]:
    return {request_id: progress_of(core, request_id) for request_id in request_ids}


def phase_of(session: Session) -> Phase:
    if session.clock.is_paused:
        return "paused"
    if not session.is_ready:
        return "encoding"
    return "queued" if session.worker_id is None else "denoising"


def steps_before(session: Session) -> int:
    """Denoise steps of the video before the one at the cursor."""
    chunk, stage, step = session.cursor
    params = session.params
    if session.is_planned:
        return params.total_steps
    chunks = sum(sum(params.stage_steps(index)) for index in range(chunk))
    return chunks + sum(params.stage_steps(chunk)[:stage]) + step


def queue_position(session: Session, scheduler: Scheduler) -> int | None:
    """By arrival, since the fair order depends on the service that others still get."""
    if session.session_id not in scheduler.waiting:
        return None
    arrival = session.clock.arrival
    return sum(other.clock.arrival <= arrival for other in scheduler.waiting)


def eta(session: Session, scheduler: Scheduler) -> float | None:
    worker = scheduler.workers.get(session.worker_id or "")
    if worker is None or not worker.rate:
        return None
    return session.remaining_cost * len(worker.queue.sessions) / worker.rate
