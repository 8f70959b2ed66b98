"""How far a request is."""

from typing import Literal, NamedTuple

from helios_serve.core.scheduler import Scheduler
from helios_serve.core.session import Session

Phase = Literal["encoding", "queued", "paused", "denoising", "decoding"]


class Progress(NamedTuple):
    """Denoise steps done and in all; those under way are not done.

    `queue_position` counts from 1 for a request that waits for a worker. `eta_seconds` goes by the
    worker's measured rate and by how many share it; None before there is one.
    """

    phase: Phase
    steps_done: int
    total_steps: int
    queue_position: int | None = None
    eta_seconds: float | None = None


def progress_of(request_id: str, scheduler: Scheduler) -> Progress:
    """Of a request that is not over; the scheduler forgets it when its last step is done."""
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
    """By arrival: fair order depends on what the others still do."""
    if session.session_id not in scheduler.waiting:
        return None
    arrival = session.clock.arrival
    return sum(other.clock.arrival <= arrival for other in scheduler.waiting)


def eta(session: Session, scheduler: Scheduler) -> float | None:
    worker = scheduler.workers.get(session.worker_id or "")
    if worker is None or not worker.rate:
        return None
    return session.remaining_cost * len(worker.queue.sessions) / worker.rate
