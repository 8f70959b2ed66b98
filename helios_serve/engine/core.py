"""The engine's loop over one runner: sessions in, a step for each of them, chunks out."""

from collections.abc import Iterable
from typing import Protocol

from helios_serve.core.history_manager import HistoryManager
from helios_serve.messages import (
    ChunkResult,
    NewSession,
    RunnerOutput,
    ScheduledStep,
    SchedulerOutput,
    StepCursor,
)
from helios_serve.model_config import (
    CHUNK_FRAMES,
    CHUNK_LATENTS,
    HISTORY_FRAMES,
    Geometry,
    HeliosConfig,
)
from helios_serve.sampling_params import ResolvedParams, VideoRequest


class Runner(Protocol):
    """What the engine needs of a worker."""

    def execute_model(self, output: SchedulerOutput) -> RunnerOutput: ...


class Session:
    """The engine's view of a session: parameters and a cursor."""

    def __init__(self, request: VideoRequest, params: ResolvedParams) -> None:
        self.request = request
        self.params = params
        self.geometry = Geometry(request.params.height, request.params.width)
        self.cursor = StepCursor(0, 0, 0)

    @property
    def is_finished(self) -> bool:
        return self.cursor.chunk == self.params.num_chunks

    @property
    def initial_frames(self) -> int:
        """History frames that the reference gives before the first chunk."""
        if self.request.image is not None:
            return 1
        if self.request.video is not None:
            chunks = self.request.video.count // CHUNK_FRAMES
            return min(HISTORY_FRAMES, chunks * CHUNK_LATENTS)
        return 0

    def makes_anchor(self, chunk: int) -> bool:
        """Whether the first frame of `chunk` becomes the anchor (helios.md, section 2)."""
        if chunk == 0:
            return self.initial_frames == 0
        return chunk == 1 and self.request.params.skip_first_chunk

    def advance(self) -> None:
        """Move the cursor over one step."""
        chunk, stage, step = self.cursor
        steps = self.params.stage_steps(chunk)
        if step + 1 < steps[stage]:
            self.cursor = StepCursor(chunk, stage, step + 1)
        elif stage + 1 < len(steps):
            self.cursor = StepCursor(chunk, stage + 1, 0)
        else:
            self.cursor = StepCursor(chunk + 1, 0, 0)


class EngineCore:
    """Advances every admitted session by one step at a time, first come, first served.

    A session waits until the pool has room for all that it can ever hold.
    """

    def __init__(self, runner: Runner, config: HeliosConfig, num_blocks: int) -> None:
        self.runner = runner
        self.config = config
        self.history = HistoryManager(num_blocks)
        self.waiting: list[Session] = []
        self.running: dict[str, Session] = {}

    @property
    def has_unfinished(self) -> bool:
        return bool(self.waiting or self.running)

    def add_request(self, request: VideoRequest) -> Session:
        """Queue a request; raises InvalidRequestError if it cannot be served."""
        request.check_media()
        session = Session(request, request.params.resolve(self.config))
        self.waiting.append(session)
        return session

    def step(self) -> tuple[ChunkResult, ...]:
        """One denoise step of every running session; returns the chunks that it finished."""
        admitted = tuple(self._admit())
        steps = tuple(self._schedule(session_id) for session_id in self.running)
        output = self.runner.execute_model(SchedulerOutput(admitted, steps))
        for scheduled in steps:
            self._advance(scheduled.session_id)
        self._close(session_id for session_id, item in self.running.items() if item.is_finished)
        return output.chunks

    def abort(self, request_id: str) -> None:
        """Forget a request and free what it holds."""
        self.waiting = [item for item in self.waiting if item.request.request_id != request_id]
        if request_id in self.running:
            self._close([request_id])

    def _admit(self) -> Iterable[NewSession]:
        while self.waiting and self._has_room(self.waiting[0]):
            session = self.waiting.pop(0)
            session_id = session.request.request_id
            blocks = self.history.open(
                session_id, session.geometry, initial_frames=session.initial_frames
            )
            self.running[session_id] = session
            yield NewSession(session_id, session.request, blocks)

    def _has_room(self, session: Session) -> bool:
        promised = sum(self.history.peak_blocks(item.geometry) for item in self.running.values())
        needed = self.history.peak_blocks(session.geometry)
        return promised + needed < self.history.pool.num_blocks

    def _schedule(self, session_id: str) -> ScheduledStep:
        session = self.running[session_id]
        begins = session.cursor[1:] == (0, 0)
        blocks = self.history.begin_chunk(session_id, session.geometry) if begins else None
        return ScheduledStep(session_id, session.cursor, blocks)

    def _advance(self, session_id: str) -> None:
        session = self.running[session_id]
        chunk = session.cursor.chunk
        session.advance()
        if session.cursor.chunk > chunk:
            self.history.end_chunk(session_id, new_anchor=session.makes_anchor(chunk))

    def _close(self, session_ids: Iterable[str]) -> None:
        closed = tuple(session_ids)
        for session_id in closed:
            del self.running[session_id]
            self.history.close(session_id)
        if closed:
            self.runner.execute_model(SchedulerOutput(finished=closed))
