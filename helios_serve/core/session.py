"""A session as the scheduler sees it: a cursor, a status, and what its steps cost."""

import enum
from collections import Counter

from helios_serve.core.cost import chunk_cost, stage_step_cost
from helios_serve.core.history_manager import HistoryManager
from helios_serve.core.realtime import PlaybackClock
from helios_serve.messages import Snapshot, StepCursor
from helios_serve.model_config import (
    CHUNK_FRAMES,
    CHUNK_LATENTS,
    HISTORY_FRAMES,
    Geometry,
    HeliosConfig,
)
from helios_serve.sampling_params import VideoRequest


class SessionStatus(enum.IntEnum):
    """Where a session is in its life; everything from FINISHED_COMPLETED on is over."""

    WAITING = enum.auto()
    RUNNING = enum.auto()
    PAUSED = enum.auto()
    PREEMPTED = enum.auto()
    FINISHED_COMPLETED = enum.auto()
    FINISHED_ABORTED = enum.auto()
    FINISHED_FAILED = enum.auto()

    @property
    def is_finished(self) -> bool:
        return self >= SessionStatus.FINISHED_COMPLETED


class Session:
    """One video in the making.

    `cursor` is the next step to plan. Plans do not wait for results, so it runs ahead of what
    workers have done by the session's `in_flight` steps; `snapshot` is where it can be taken up
    again, if not at its beginning. A session that `is_leaving` gives its
    blocks back at the next chunk edge.
    """

    def __init__(self, request: VideoRequest, config: HeliosConfig, *, arrival: float) -> None:
        request.check_inputs()
        self.request = request
        self.config = config
        self.params = request.params.resolve(config)
        self.geometry = Geometry(request.params.height, request.params.width)
        self.clock = PlaybackClock(arrival=arrival, fps=request.params.fps)
        self.status = SessionStatus.WAITING
        self.cursor = StepCursor(0, 0, 0)
        self.worker_id: str | None = None
        self.in_flight = 0
        self.snapshot: Snapshot | None = None
        self.is_suspect = False
        self.lone_deaths: Counter[StepCursor | None] = Counter()
        self.placed_chunk = 0
        self.is_leaving = False
        branches = 2 if self.params.is_guided else 1
        self.step_costs = tuple(
            stage_step_cost(config, self.geometry, stage, branches)
            for stage in range(config.stages)
        )
        self._branches = branches

    @property
    def session_id(self) -> str:
        return self.request.request_id

    @property
    def is_priority(self) -> bool:
        return self.request.tier == "priority"

    @property
    def is_planned(self) -> bool:
        """Whether every step has been given to a worker."""
        return self.cursor.chunk == self.params.num_chunks

    @property
    def is_going(self) -> bool:
        """Whether its blocks come free without anyone doing more about it.

        A session that is to leave at its next chunk edge never comes to it while it is paused.
        """
        ended = self.status is SessionStatus.PREEMPTED or self.status.is_finished
        leaves = self.is_leaving and self.status is SessionStatus.RUNNING
        return ended or leaves or self.is_planned

    @property
    def at_chunk_edge(self) -> bool:
        return self.cursor.stage == self.cursor.step == 0

    @property
    def step_cost(self) -> float:
        """FLOPs of the next step."""
        return self.step_costs[self.cursor.stage]

    @property
    def step_tokens(self) -> int:
        """Tokens that the next step adds to a batch."""
        noise = self.geometry.noise_tokens(self.cursor.stage, self.config.stages)
        return self._branches * (self.geometry.history_tokens + noise)

    @property
    def chunk_cost(self) -> float:
        """FLOPs of the chunk at the cursor."""
        return chunk_cost(self.config, self.geometry, self.params, self.cursor.chunk)

    @property
    def remaining_chunk_cost(self) -> float:
        """FLOPs from the cursor to the end of its chunk."""
        chunk, stage, step = self.cursor
        steps = self.params.stage_steps(chunk)
        left = (steps[stage] - step, *steps[stage + 1 :])
        return sum(count * cost for count, cost in zip(left, self.step_costs[stage:], strict=True))

    @property
    def remaining_cost(self) -> float:
        """FLOPs from the cursor to the end of the video."""
        if self.is_planned:
            return 0.0
        later = self.params.num_chunks - self.cursor.chunk - 1
        whole = chunk_cost(self.config, self.geometry, self.params, 1)
        return self.remaining_chunk_cost + later * whole

    @property
    def cost_rate(self) -> float:
        """FLOPs a second of playback: what real time asks of a worker."""
        whole = chunk_cost(self.config, self.geometry, self.params, 1)
        return whole * self.request.params.fps / CHUNK_FRAMES

    @property
    def peak_blocks(self) -> int:
        """The most history blocks that the session ever holds."""
        return HistoryManager.peak_blocks(self.geometry)

    @property
    def edge_chunk(self) -> int:
        """The chunk at which it can be taken up again."""
        return 0 if self.snapshot is None else self.snapshot.chunk

    @property
    def edge_frames(self) -> int:
        """History frames at the edge where it can be taken up again."""
        made = self.edge_chunk * CHUNK_LATENTS
        return min(HISTORY_FRAMES, self.initial_frames + made)

    def rewind(self) -> None:
        """Back to the last confirmed chunk edge: what was planned after it is lost."""
        self.cursor = StepCursor(self.edge_chunk, 0, 0)
        self.in_flight = 0
        self.worker_id = None
        self.is_leaving = False

    def acquit(self) -> None:
        """It has made a chunk: whatever its workers died of, it was not that."""
        self.is_suspect = False
        self.lone_deaths.clear()

    @property
    def may_leave(self) -> bool:
        """Whether it is at a chunk edge and has made a chunk where it is: so nobody starves."""
        return self.at_chunk_edge and self.cursor.chunk > self.placed_chunk

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
        """Whether the first frame of `chunk` becomes the anchor, as in diffusers 0.42.1."""
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
