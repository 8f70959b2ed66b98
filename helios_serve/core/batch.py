"""The sessions of one step."""

from helios_serve.core.session import Session
from helios_serve.core.worker_state import WorkerState
from helios_serve.options.scheduling import SchedulingConfig

MAX_SKIPPED = 8
"""Sessions that do not fit a batch and are skipped, at most."""


class StepBatch:
    """Sessions whose next steps run together; `cost` is the FLOPs of all these steps."""

    def __init__(self, config: SchedulingConfig) -> None:
        self.config = config
        self.sessions: list[Session] = []
        self.tokens = 0
        self.cost = 0.0
        self.has_priority = False

    def fill(self, worker: WorkerState) -> None:
        """Take sessions from the worker's queue, in its order, up to the limits of the config.

        Those that do not fit keep their places.
        """
        skipped: list[Session] = []
        while len(skipped) < MAX_SKIPPED:
            session = worker.queue.pop(with_priority=self.has_priority)
            if session is None:
                break
            if self.fits(session):
                self.add(session)
            else:
                skipped.append(session)
        for session in reversed(skipped):
            worker.queue.push(session, worker.rate, front=True)

    def fits(self, session: Session) -> bool:
        """Whether a session can be added. The first one always can; a suspect runs alone."""
        if not self.sessions:
            return True
        if session.is_suspect or self.sessions[0].is_suspect:
            return False
        tokens = self.tokens + session.cost.tokens[session.cursor.stage]
        within = tokens <= self.config.max_num_batched_tokens
        return within and len(self.sessions) < self.config.max_num_seqs

    def add(self, session: Session) -> None:
        self.sessions.append(session)
        self.tokens += session.cost.tokens[session.cursor.stage]
        self.cost += session.step_cost
        self.has_priority |= session.is_priority
