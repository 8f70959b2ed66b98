"""Realtime sessions: which connection reads each, and how long a session waits for its client."""

import asyncio
import math
from contextlib import suppress
from types import TracebackType
from typing import NamedTuple, Protocol

import msgspec

from helios_serve.engine.requests.async_engine import AsyncEngine
from helios_serve.errors import EngineDeadError, InvalidRequestError
from helios_serve.options.sampling import PromptSwitch, SamplingParams
from helios_serve.service.errors import ApiError
from helios_serve.service.realtime.messages import Interaction
from helios_serve.store.jobs import StoredJob
from helios_serve.store.video_store import VideoStore

NO_READER = "its client is disconnected"
MAX_INTERACTIONS = 10_000
"""Maximum number of interactions of one session. All are kept until it ends, to detect repeated
ones.
"""


class RealtimeConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of realtime sessions.

    Args:
        grace: Seconds for which a session waits for its client to reconnect.
        start: Seconds within which a new connection must start a session.
        idle: Seconds for which a connection may be silent between two sessions.
    """

    grace: float = 30.0
    start: float = 10.0
    idle: float = 60.0


class Reader(Protocol):
    """A connection that reads a session."""

    def evict(self) -> None:
        """Stop reading at once, because another connection reads the session now."""

    async def report_failure(self, event_id: str, error: Exception) -> None:
        """Report that an accepted interaction failed."""


class ChunkEvents(NamedTuple):
    """Event ids of the interactions that start with, are active in, or are completed by a chunk."""

    started: list[str]
    active: list[str]
    completed: list[str]


class RealtimeSession:
    """A video with its client's interactions and the connection that reads it.

    A session without an end (`is_endless`) forgets its oldest interactions, so that it may have any
    number of them.
    """

    def __init__(self, video_id: str, *, is_endless: bool = False) -> None:
        self.video_id = video_id
        self.is_endless = is_endless
        self.reader: Reader | None = None
        self.release: asyncio.Task[None] | None = None
        self._interactions: dict[str, Interaction] = {}
        self._event_ids: dict[tuple[int, str], str] = {}
        """Event ids of interactions, by the chunk and the prompt of the resulting switch."""
        self._switching: set[asyncio.Task[None]] = set()

    def accept(self, event_id: str, interaction: Interaction) -> bool:
        """Record an interaction. Return whether it is new.

        Raises ApiError if its id was used with different content, or there are too many
        interactions.
        """
        known = self._interactions.get(event_id)
        if known is not None:
            if (known.event, known.transition_chunks) == (
                interaction.event,
                interaction.transition_chunks,
            ):
                return False
            raise ApiError(
                409,
                f"got event_id {event_id!r} again with different content, expected a new id",
                code="event_id_conflict",
            )
        if len(self._interactions) == MAX_INTERACTIONS and self.is_endless:
            self._forget_oldest()
        elif len(self._interactions) == MAX_INTERACTIONS:
            raise ApiError(
                429,
                f"too many interactions, expected at most {MAX_INTERACTIONS} in one session",
                code="too_many_interactions",
            )
        self._interactions[event_id] = interaction
        return True

    def _forget_oldest(self) -> None:
        oldest = next(iter(self._interactions))
        del self._interactions[oldest]
        for place, event_id in list(self._event_ids.items()):
            if event_id == oldest:
                del self._event_ids[place]

    def switch(self, engine: AsyncEngine, event_id: str, interaction: Interaction) -> None:
        """Change the video's prompt in the background.

        A failure is reported to the session's reader.
        """
        task = asyncio.create_task(self._switch(engine, event_id, interaction))
        self._switching.add(task)
        task.add_done_callback(self._switching.discard)

    def record_switch(self, event_id: str, switch: PromptSwitch) -> None:
        """Record the prompt switch that an interaction became."""
        self._event_ids[switch.chunk, switch.prompt] = event_id

    @property
    def num_switching(self) -> int:
        """The number of interactions that have not been assigned a chunk yet."""
        return len(self._switching)

    def events_at(self, chunk: int, params: SamplingParams) -> ChunkEvents:
        """Return the events of chunk number `chunk`, given the prompt switches in `params`."""
        events = ChunkEvents([], [], [])
        ends = [switch.chunk for switch in params.switches[1:]]
        for switch, end in zip(params.switches, (*ends, math.inf), strict=False):
            event_id = self._event_ids.get((switch.chunk, switch.prompt))
            target = switch.chunk + max(1, transition_of(switch, params)) - 1
            if event_id is None or not switch.chunk <= chunk <= target or chunk >= end:
                continue
            events.active.append(event_id)
            if chunk == switch.chunk:
                events.started.append(event_id)
            if chunk == target:
                events.completed.append(event_id)
        return events

    async def _switch(self, engine: AsyncEngine, event_id: str, interaction: Interaction) -> None:
        prompt, chunks = interaction.event.prompt, interaction.transition_chunks
        try:
            switch = await engine.switch_prompt(self.video_id, prompt, chunks)
        except Exception as error:
            self._interactions.pop(event_id, None)  # allows a retry with the same id
            if self.reader is not None:
                await self.reader.report_failure(event_id, error)
        else:
            self.record_switch(event_id, switch)


def transition_of(switch: PromptSwitch, params: SamplingParams) -> int:
    """Return the number of chunks over which a switch is blended."""
    chosen = switch.transition_chunks
    return params.transition_chunks if chosen is None else chosen


class RealtimeSessions:
    """All unfinished sessions, by video id.

    An asynchronous context manager, used inside the engine's. A session is a stored video with
    `max_lead_chunks`, which waits for its reader. Entering the context restores the sessions of an
    earlier server; leaving it keeps them for the next one.
    """

    def __init__(self, engine: AsyncEngine, store: VideoStore, config: RealtimeConfig) -> None:
        self.engine = engine
        self.store = store
        self.config = config
        self._sessions: dict[str, RealtimeSession] = {}
        self._ending: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "RealtimeSessions":
        for job in await asyncio.to_thread(self.store.jobs):
            if is_session(job) and not job.is_finished:
                self._hold(self._sessions.setdefault(job.id, session_of(job)))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        waiting = [item.release for item in self._sessions.values() if item.release is not None]
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, *self._ending, return_exceptions=True)

    async def attach(
        self, video_id: str, reader: Reader, *, is_endless: bool = False
    ) -> RealtimeSession:
        """Attach `reader` to a session, and evict its previous reader."""
        new = RealtimeSession(video_id, is_endless=is_endless)
        session = self._sessions.setdefault(video_id, new)
        before, session.reader = session.reader, reader
        if before is not None:
            before.evict()
        if session.release is not None:
            session.release.cancel()
            session.release = None
        with suppress(InvalidRequestError, EngineDeadError):  # finished: stored chunks are read
            await self.engine.resume(video_id, NO_READER)
        return session

    def detach(self, session: RealtimeSession, reader: Reader) -> None:
        """Detach a disconnected reader, and abort the session unless it is resumed in time."""
        if session.reader is reader:
            session.reader = None
            self._hold(session)

    def end(self, session: RealtimeSession, reader: Reader) -> None:
        """Forget a finished session."""
        if session.reader is reader:
            self._sessions.pop(session.video_id, None)

    async def abort(self, video_id: str) -> None:
        """Abort a session's video. This completes even if the caller is cancelled."""
        ending = asyncio.create_task(self.engine.abort(video_id))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)
        await asyncio.shield(ending)

    def _hold(self, session: RealtimeSession) -> None:
        session.release = asyncio.create_task(self._release(session))

    async def _release(self, session: RealtimeSession) -> None:
        with suppress(InvalidRequestError, EngineDeadError):
            await self.engine.pause(session.video_id, NO_READER)
        await asyncio.sleep(self.config.grace)
        self._sessions.pop(session.video_id, None)
        await self.abort(session.video_id)


def session_of(job: StoredJob) -> RealtimeSession:
    return RealtimeSession(job.id, is_endless=job.is_endless)


def is_session(job: StoredJob) -> bool:
    """Return whether a job belongs to a realtime session."""
    return job.request.max_lead_chunks is not None
