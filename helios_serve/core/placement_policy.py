"""Which worker a session runs on."""

from collections.abc import Iterable

from helios_serve.core.session import Session
from helios_serve.core.worker_state import WorkerState
from helios_serve.errors import CapacityError, InvalidRequestError
from helios_serve.options.scheduling import SchedulingConfig


class PlacementPolicy:
    """Chooses the worker with the least outstanding work among those that have room."""

    def __init__(self, config: SchedulingConfig) -> None:
        self.config = config

    def can_ever(self, session: Session, workers: Iterable[WorkerState]) -> bool:
        """Whether some worker is large enough, or there are no workers yet."""
        known = list(workers)
        return not known or any(worker.could_hold(session) for worker in known)

    def check(self, session: Session, workers: Iterable[WorkerState], promised: float) -> None:
        """Refuse what no worker can ever run, and real time that no worker can promise now.

        `promised` is the FLOP/s of waiting priority sessions. Raises InvalidRequestError or
        CapacityError. Without workers everything may wait.
        """
        known = list(workers)
        if not self.can_ever(session, known):
            largest = max(worker.total_blocks for worker in known)
            params = session.params
            raise InvalidRequestError(
                f"got size {params.width}x{params.height}, whose history takes "
                f"{session.cost.peak_blocks} blocks, expected at most the {largest} of a worker",
                param="size",
            )
        if (
            session.is_priority
            and known
            and not any(
                worker.keeps_up(session, self.config.realtime_share, promised) for worker in known
            )
        ):
            raise CapacityError(
                "no worker can run another video in real time",
                code="realtime_capacity",
            )

    def choose(self, session: Session, workers: Iterable[WorkerState]) -> WorkerState | None:
        """The worker for `session`, or None if none has room.

        A worker that holds the session's history for one of its siblings comes first.
        """
        fits = [worker for worker in workers if worker.has_room(session)]
        if session.siblings:
            fits = [worker for worker in fits if worker.find_sibling(session)] or fits
        if session.is_priority:
            share = self.config.realtime_share
            fits = [worker for worker in fits if worker.keeps_up(session, share)] or fits
        return min(fits, key=expected_wait, default=None)


def expected_wait(worker: WorkerState) -> tuple[float, str]:
    """Seconds of outstanding work, or FLOPs before the worker's first measurement; then its id."""
    return worker.outstanding_cost / (worker.rate or 1.0), worker.worker_id
