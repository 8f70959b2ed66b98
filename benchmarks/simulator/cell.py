"""A cell: one engine with its workers, and the sessions that it makes."""

import asyncio
import functools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from helios_serve.benchmarks.measure.record import ChunkRecord, SessionRecord, SwitchRecord
from helios_serve.benchmarks.simulator.costs import CostModel
from helios_serve.benchmarks.simulator.executor import SimulatedExecutor
from helios_serve.benchmarks.simulator.lead import SessionLead
from helios_serve.benchmarks.simulator.virtual_time import LoopTime
from helios_serve.benchmarks.targets.target import SessionFailedError
from helios_serve.engine.loop.engine_core import EngineCore
from helios_serve.engine.loop.events import (
    ChunkReady,
    EngineEvent,
    PromptSwitched,
    RequestFailed,
    RequestFinished,
    StepTaken,
)
from helios_serve.engine.loop.submission import Submission
from helios_serve.engine.observe.observer import Observer
from helios_serve.errors import HeliosError, InvalidRequestError
from helios_serve.messages import Snapshot
from helios_serve.model_config import frames_of_chunk
from helios_serve.options.engine import EngineConfig
from helios_serve.store.snapshots import ResumePoint
from helios_serve.video_request import VideoRequest

IDLE_SECONDS = 10.0
"""How long an engine without work waits before it looks at deadlines again."""


@dataclass(eq=False)
class LiveSession:
    """A session that a cell makes: its request, its record, and who waits for its end.

    `snapshot` is its state after the last delivered chunk, from which it resumes after an outage.
    """

    request: VideoRequest
    record: SessionRecord
    ended: "asyncio.Future[None]"
    lead: SessionLead | None = None
    snapshot: Snapshot | None = None
    switches: dict[str, SwitchRecord] = field(default_factory=dict)
    applied: list[tuple[int, SwitchRecord]] = field(default_factory=list)
    """Switches that take effect, each with its chunk, until that is delivered."""


class CellCounts(NamedTuple):
    """What a cell did, all its engines together.

    `steps` counts iterations of the engine's loop, `deaths` workers.
    """

    steps: int
    plans: int
    decodes: int
    encodes: int
    denoise_seconds: float
    decode_seconds: float
    encode_seconds: float
    preemptions: int
    deaths: int


class Cell:
    """Steps an EngineCore in the running loop's virtual time, and hands its events to sessions.

    A session is delivered `deliver_seconds` after its chunk is decoded. `now` returns seconds since
    the start of the load.
    """

    def __init__(
        self,
        model: CostModel,
        config: EngineConfig,
        *,
        now: Callable[[], float],
        deliver_seconds: float = 0.0,
        observers: tuple[Observer, ...] = (),
        jitter: random.Random | None = None,
        host_cores: float | None = None,
        host_workers: int = 1,
    ) -> None:
        self.model = model
        self.config = config
        self.sessions: dict[str, LiveSession] = {}
        self.deaths = 0
        self.is_up = False
        self._now = now
        self._deliver_seconds = deliver_seconds
        self._observers = observers
        self._start_executor = functools.partial(
            SimulatedExecutor,
            model,
            jitter=jitter,
            host_cores=host_cores,
            host_workers=host_workers,
        )
        self._loop = asyncio.get_running_loop()
        self._time = LoopTime()
        self._timer: asyncio.Handle | None = None
        self._steps = 0
        self._past: list[CellCounts] = []
        self._open()

    def start(self, request: VideoRequest, record: SessionRecord) -> LiveSession:
        """Accept a session; raises what EngineCore.add_request does."""
        if not self.is_up:
            raise SessionFailedError("connection", "the cell is down")
        self.core.add_request(request)
        live = LiveSession(request, record, self._loop.create_future())
        self._enter(live)
        self.sessions[request.request_id] = live
        self.wake()
        return live

    def switch(self, live: LiveSession, prompt: str) -> None:
        """Ask for another prompt. One that comes too late is never seen."""
        switch = SwitchRecord(f"switch-{len(live.record.switches)}", self._now())
        live.record.switches.append(switch)
        live.switches[prompt] = switch
        try:
            self.core.switch_prompt(live.request.request_id, prompt)
        except InvalidRequestError:
            del live.switches[prompt]
        self.wake()

    def leave(self, request_id: str) -> None:
        """The client of a session has left."""
        live = self.sessions.pop(request_id, None)
        if live is None:
            return
        if live.lead is not None:
            live.lead.leave()
        if self.is_up:
            self.core.abort(request_id)
            self.wake()

    def wake(self) -> None:
        """Step the engine as soon as the present callbacks are done."""
        self._set_timer(None)

    def lose_worker(self, index: int, reason: str) -> None:
        """Let the worker die that is `index`-th in the order of their starts, if there is one."""
        if self.is_up and index < len(self.executor.workers):
            self.deaths += 1
            self.executor.lose(list(self.executor.workers)[index], reason)
            self.wake()

    def drain_worker(self, index: int) -> None:
        """Let a worker's sessions leave it, and stop it. The last one with a role stays."""
        if self.is_up and index < len(self.executor.workers):
            self.core.worker_pool.drain(list(self.executor.workers)[index])
            self.wake()

    def die(self, seconds: float) -> None:
        """The engine and all its workers die; after `seconds` its sessions resume from the disk."""
        if not self.is_up:
            return
        self._past.append(self._counts())
        self.deaths += len(self.executor.workers)
        self.is_up = False
        if self._timer is not None:
            self._timer.cancel()
        for live in self.sessions.values():
            if live.lead is not None:
                live.lead.leave()
        self._loop.call_later(seconds, self._restart)

    def counts(self) -> CellCounts:
        """Return what was done so far."""
        parts = [*self._past, *([self._counts()] if self.is_up else [])]
        sums = CellCounts(*map(sum, zip(*parts, strict=True)))
        return sums._replace(steps=self._steps, deaths=self.deaths)

    def check(self) -> None:
        """Raise AssertionError unless the scheduler's accounts agree with each other."""
        self.core.scheduler.check_integrity()

    def _open(self) -> None:
        self.executor = self._start_executor(clock=self._time)
        self.core = EngineCore(
            self.executor,
            self.model.config,
            self.config,
            clock=self._time.now,
            observers=self._observers,
        )
        self.is_up = True
        self.wake()

    def _restart(self) -> None:
        """Start another engine, with every session that has not ended."""
        self._open()
        for live in list(self.sessions.values()):
            snapshot = live.snapshot
            point = None if snapshot is None else ResumePoint(snapshot)
            params = live.request.resolve(self.model.config)
            self.core.add(Submission(live.request, params, point, was_accepted=True))
            self._enter(live)

    def _enter(self, live: LiveSession) -> None:
        if live.request.max_lead_chunks is not None:
            first = 0 if live.snapshot is None else live.snapshot.chunk
            pause = self.core.scheduler.pause
            live.lead = SessionLead(live.request, pause, self._resume, first_chunk=first)

    def _resume(self, request_id: str) -> None:
        self.core.scheduler.resume(request_id)
        self.wake()

    def _step(self) -> None:
        """Step the engine until nothing more is to happen at this time."""
        self._timer = None
        has_more = True
        while has_more:
            self._steps += 1
            events = self.core.step(IDLE_SECONDS)
            for event in events:
                self._take(event)
            has_more = self.executor.last_received > 0
        self._set_timer(self._time.wake_at)

    def _set_timer(self, when: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self.is_up:
            return
        if when is None:
            self._timer = self._loop.call_soon(self._step)
        else:
            self._timer = self._loop.call_at(when, self._step)

    def _take(self, event: EngineEvent) -> None:
        live = self.sessions.get(event.request_id)
        if live is None:
            return
        match event:
            case StepTaken():
                if live.lead is not None:
                    live.lead.step(event.cursor.chunk)
            case ChunkReady():
                if self._deliver_seconds:
                    self._loop.call_later(self._deliver_seconds, self._deliver, live, event)
                else:
                    self._deliver(live, event)
            case PromptSwitched():
                switch = live.switches.pop(event.prompt, None)
                if switch is not None and event.switch is not None:
                    live.applied.append((event.switch.chunk, switch))
            case RequestFinished():
                del self.sessions[event.request_id]
                self._loop.call_later(self._deliver_seconds, end, live, None)
            case RequestFailed():
                del self.sessions[event.request_id]
                end(live, SessionFailedError("failed", event.message))

    def _deliver(self, live: LiveSession, event: ChunkReady) -> None:
        """The client, unless it has left, has got a chunk."""
        if live.ended.done():
            return
        frames = frames_of_chunk(live.request.params.num_frames, event.chunk).length
        at = self._now()
        for item in list(live.applied):
            chunk, switch = item
            if chunk <= event.chunk:
                switch.seen, switch.chunk = at, len(live.record.chunks)
                live.applied.remove(item)
        live.record.chunks.append(ChunkRecord(at, frames, 0))
        live.snapshot = event.snapshot
        if live.lead is not None:
            live.lead.deliver(event.chunk)

    def _counts(self) -> CellCounts:
        executor, stats = self.executor, self.core.scheduler.stats()
        return CellCounts(
            0,
            executor.done["denoise"],
            executor.done["decode"],
            executor.done["encode"],
            executor.busy_seconds("denoise"),
            executor.busy_seconds("decode"),
            executor.busy_seconds("encode"),
            stats.preemptions,
            0,
        )


def end(live: LiveSession, error: HeliosError | SessionFailedError | None) -> None:
    """Tell the client that its session has ended."""
    if live.lead is not None:
        live.lead.leave()
    if live.ended.done():
        return
    if error is None:
        live.ended.set_result(None)
    else:
        live.ended.set_exception(error)
