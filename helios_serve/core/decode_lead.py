"""How far sessions may run ahead of the decoders."""

from collections.abc import Set

from helios_serve.core.queued_task import QueuedTask
from helios_serve.core.scheduler import Scheduler
from helios_serve.core.session import Session
from helios_serve.core.stage_queue import FlowKey
from helios_serve.messages import DecodeTask

DECODE_AHEAD = 16
"""Chunks per decoder that may wait. They take the engine's memory, and are counted by no limit on
sessions."""
CHUNKS_AHEAD = 1
"""Chunks of one session that may be undelivered in addition to one per decoder: enough that a lone
session keeps all decoders busy, and so few that a prompt switch is seen soon."""


class DecodeLead:
    """Keeps sessions from running ahead of the decoders.

    Each session has a limit of its own. In addition a flow whose part of `DECODE_AHEAD` is used up
    begins no chunk; the others do, so no tenant waits for the chunks of another one. Sessions of
    the priority tier have only the first limit: what they need is checked at their admission.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self._next: dict[str, int] = {}
        """The chunk that each session is to deliver next."""
        self._changed: dict[str, None] = {}
        """Sessions whose limit has to be set anew, in order: sets of names have a random one."""
        self._decoders = 0

    def put(self, session: Session, task: DecodeTask, preferred: str | None = None) -> None:
        """Queue a denoised chunk for decoding, best by the worker `preferred`."""
        due = session.clock.deadline(task.chunk, self.scheduler.config.start_buffer)
        is_first = session.is_new and task.chunk == self.next_chunk(session.session_id)
        self.scheduler.decoding.put(
            QueuedTask(task, session, session.cost.decode, due, preferred, is_first)
        )

    def deliver(self, session_id: str, next_chunk: int) -> None:
        """All chunks of a session before `next_chunk` were delivered; also for a new session."""
        self._next[session_id] = next_chunk
        self._changed[session_id] = None

    def next_chunk(self, session_id: str) -> int:
        """The chunk that a session is to deliver next."""
        return self._next[session_id]

    def forget(self, session_id: str) -> None:
        """The session has delivered all its chunks, or has ended otherwise."""
        self._next.pop(session_id, None)
        self.scheduler.decoding.forget(session_id)

    def update(self, decoders: int) -> None:
        """Let sessions begin the chunks that so many decoders keep up with, and no others."""
        if decoders != self._decoders:
            self._decoders = decoders
            self._changed.update(dict.fromkeys(self._next))
        changed, self._changed = self._changed, {}
        for session_id in changed:
            if session_id in self._next:
                self.scheduler.allow_chunks(session_id, self._next[session_id] + self._ahead)
        self.scheduler.placement.hold(self._full_flows())

    @property
    def _ahead(self) -> int:
        return max(1, self._decoders) + CHUNKS_AHEAD

    def _full_flows(self) -> Set[FlowKey]:
        """Flows with so many waiting chunks that no more should be begun."""
        waiting = self.scheduler.decoding.waiting_by_flow
        if not waiting:
            return frozenset()
        part = DECODE_AHEAD * max(1, self._decoders) // len(waiting)
        most = max(self._ahead, part)
        return {flow for flow, number in waiting.items() if number >= most and not flow.is_priority}
