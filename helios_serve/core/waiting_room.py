"""Sessions that wait for a worker, in the order in which they get one."""

from collections.abc import Iterator

from helios_serve.core.fair_queue import FairQueue
from helios_serve.core.session import Session
from helios_serve.options.scheduling import SchedulingConfig


class WaitingRoom:
    """Two lines, of priority sessions and of others, each in fair order over the tenants.

    Only sessions that could begin at once are in line. The head of a line stays there until it is
    placed, so that smaller sessions cannot pass it forever.
    """

    def __init__(self, config: SchedulingConfig) -> None:
        self.config = config
        self._sessions: dict[str, Session] = {}
        self._lines: dict[bool, FairQueue[str]] = {True: FairQueue(), False: FairQueue()}
        self._heads: dict[bool, Session | None] = {True: None, False: None}

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(self._sessions.values())

    def __contains__(self, session_id: str) -> bool:
        return session_id in self._sessions

    @property
    def promised_rate(self) -> float:
        """FLOP/s that the waiting priority sessions take in real time."""
        return sum(session.cost.rate for session in self if session.is_priority)

    def configure(self, config: SchedulingConfig) -> None:
        """Set the tenants' weights, also those of sessions that wait."""
        self.config = config
        for line in self._lines.values():
            line.reweigh(lambda flow: config.weight(*flow))

    def join(self, session: Session) -> None:
        flow = session.request.tenant, session.request.tier
        self._sessions[session.session_id] = session
        line = self._lines[session.is_priority]
        line.join(session.session_id, flow, self.config.weight(*flow))
        self.line_up(session)

    def leave(self, session: Session) -> None:
        self.step_aside(session)
        self._lines[session.is_priority].leave(session.session_id)
        del self._sessions[session.session_id]

    def line_up(self, session: Session) -> None:
        """Put a waiting session in line, unless it is paused or misses inputs."""
        if session.is_ready and not session.clock.is_paused:
            self._lines[session.is_priority].push(session.session_id, started=False)

    def step_aside(self, session: Session) -> None:
        """Take a session out of its line until it lines up again."""
        self._lines[session.is_priority].withdraw(session.session_id)
        if self._heads[session.is_priority] is session:
            self._heads[session.is_priority] = None

    def head(self, *, is_priority: bool) -> Session | None:
        """The first session of a line, until it leaves or steps aside."""
        if self._heads[is_priority] is None:
            session_id = self._lines[is_priority].pop()
            self._heads[is_priority] = None if session_id is None else self._sessions[session_id]
        return self._heads[is_priority]

    def serve(self, session: Session) -> None:
        """Remove a session that gets a worker; its tenant is charged for its remaining work."""
        self._lines[session.is_priority].charge(session.session_id, session.remaining_cost)
        self.leave(session)
