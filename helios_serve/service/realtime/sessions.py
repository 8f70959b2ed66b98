"""Realtime sessions: who reads each, and how long one is kept that nobody reads."""

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

NO_READER = "its client has gone"
MAX_INTERACTIONS = 10_000
"""Of one session: all are kept until it ends, since each may be sent again."""


class RealtimeConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds: `grace` keeps a session whose client has gone, `start` is for a connection to start
    one, `idle` for it to say something between two. `max_lead_chunks` is how many chunks beyond
    those sent are made: with 2, one is decoded while the next is denoised. A prompt takes effect
    behind them.
    """

    grace: float = 30.0
    start: float = 10.0
    idle: float = 60.0
    max_lead_chunks: int = 2


class Reader(Protocol):
    """A connection that has a session."""

    def evict(self) -> None:
        """Give the session up at once: another one has it."""

    async def tell_failure(self, event_id: str, error: Exception) -> None:
        """An interaction that was accepted came to nothing."""


class ChunkEvents(NamedTuple):
    """Ids of the interactions that begin with a chunk, that it turns to, and that it completes."""

    started: list[str]
    active: list[str]
    completed: list[str]


class RealtimeSession:
    """A video with the interactions of its client, and the connection that reads it."""

    def __init__(self, video_id: str) -> None:
        self.video_id = video_id
        self.reader: Reader | None = None
        self.release: asyncio.Task[None] | None = None
        self._interactions: dict[str, Interaction] = {}
        self._begun: dict[tuple[int, str], str] = {}
        """Event ids by the switch that each has become."""
        self._switching: set[asyncio.Task[None]] = set()

    def accept(self, event_id: str, interaction: Interaction) -> bool:
        """Whether it is new; one that was sent again is not. Raises ApiError."""
        known = self._interactions.get(event_id)
        if known is not None:
            if (known.event, known.transition_chunks) == (
                interaction.event,
                interaction.transition_chunks,
            ):
                return False
            raise ApiError(
                409,
                f"got event_id {event_id!r} again with another content, expected a new id",
                code="event_id_conflict",
            )
        if len(self._interactions) == MAX_INTERACTIONS:
            raise ApiError(
                429,
                f"got more than {MAX_INTERACTIONS} interactions, expected fewer in one session",
                code="too_many_interactions",
            )
        self._interactions[event_id] = interaction
        return True

    def switch(self, engine: AsyncEngine, event_id: str, interaction: Interaction) -> None:
        """Turn the video to another prompt; whoever reads it then is told if that fails."""
        task = asyncio.create_task(self._switch(engine, event_id, interaction))
        self._switching.add(task)
        task.add_done_callback(self._switching.discard)

    def begin(self, event_id: str, switch: PromptSwitch) -> None:
        """It is known at which chunk an interaction begins."""
        self._begun[switch.chunk, switch.prompt] = event_id

    @property
    def num_switching(self) -> int:
        """Interactions of which is not known yet at which chunk they begin."""
        return len(self._switching)

    def events_at(self, chunk: int, params: SamplingParams) -> ChunkEvents:
        """What chunk number `chunk` of a video has of the prompt switches in `params`."""
        events = ChunkEvents([], [], [])
        ends = [switch.chunk for switch in params.switches[1:]]
        for switch, end in zip(params.switches, (*ends, math.inf), strict=False):
            event_id = self._begun.get((switch.chunk, switch.prompt))
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
            del self._interactions[event_id]  # it may be tried again
            if self.reader is not None:
                await self.reader.tell_failure(event_id, error)
        else:
            self.begin(event_id, switch)


def transition_of(switch: PromptSwitch, params: SamplingParams) -> int:
    chosen = switch.transition_chunks
    return params.transition_chunks if chosen is None else chosen


class RealtimeSessions:
    """All sessions that are not over, by id. An asynchronous context, inside the engine's.

    A session is a stored video that has a reader whom it waits for. Entering the context takes up
    those that a server before this one has left; leaving it keeps them for the next one.
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
                self._hold(self._sessions.setdefault(job.id, RealtimeSession(job.id)))
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

    async def take(self, video_id: str, reader: Reader) -> RealtimeSession:
        """Have a session read by `reader` from now on, and by nobody else."""
        session = self._sessions.setdefault(video_id, RealtimeSession(video_id))
        before, session.reader = session.reader, reader
        if before is not None:
            before.evict()
        if session.release is not None:
            session.release.cancel()
            session.release = None
        with suppress(InvalidRequestError, EngineDeadError):  # over: then what is stored is read
            await self.engine.resume(video_id, NO_READER)
        return session

    def leave(self, session: RealtimeSession, reader: Reader) -> None:
        """Its client has gone: hold it, and end it unless the client comes back in time."""
        if session.reader is reader:
            session.reader = None
            self._hold(session)

    def end(self, session: RealtimeSession, reader: Reader) -> None:
        """Nothing more comes of it."""
        if session.reader is reader:
            self._sessions.pop(session.video_id, None)

    async def abort(self, video_id: str) -> None:
        """End a session's video; that is done whether the caller waits for it or not."""
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


def is_session(job: StoredJob) -> bool:
    """Whether a job was made for a client that has to be there."""
    return job.request.max_lead_chunks is not None
