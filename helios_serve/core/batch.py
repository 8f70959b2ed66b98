"""Sessions that take a step together."""

from helios_serve.core.session import Session
from helios_serve.core.worker_state import WorkerState
from helios_serve.options.scheduling import SchedulingConfig

MAX_PASSED_OVER = 8
"""Sessions that do not fit a batch and are skipped, at most."""


class StepBatch:
    """Filled to the token budget; `cost` is that of the step, in FLOPs."""

    def __init__(self, config: SchedulingConfig) -> None:
        self.config = config
        self.sessions: list[Session] = []
        self.tokens = 0
        self.cost = 0.0
        self.has_priority = False

    def fill(self, worker: WorkerState) -> None:
        """Take sessions out of the worker's queue, in its order, as long as there is room."""
        passed_over: list[Session] = []
        while len(passed_over) < MAX_PASSED_OVER:
            session = worker.queue.pop(beside_priority=self.has_priority)
            if session is None:
                break
            if self.fits(session):
                self.add(session)
            else:
                passed_over.append(session)
        for session in reversed(passed_over):
            worker.queue.push(session, worker.rate, front=True)

    def fits(self, session: Session) -> bool:
        """A single session always fits, whatever its size; a suspect goes alone."""
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
