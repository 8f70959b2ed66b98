"""A session as the scheduler sees it: a cursor, a status, and what its steps cost."""

import enum
from collections import Counter, deque
from collections.abc import Iterator

from helios_serve.core.cost import chunk_cost, stage_step_cost
from helios_serve.core.history_manager import HistoryManager
from helios_serve.core.realtime import PlaybackClock
from helios_serve.messages import EncodedPrompt, Snapshot, StepCursor
from helios_serve.model_config import CHUNK_FRAMES, Geometry, HeliosConfig
from helios_serve.options.sampling import PromptSwitch, ResolvedParams
from helios_serve.video_request import PromptWeight, VideoRequest, prompt_weights

PADDING_ROWS = 4
"""Text rows, at most, that stand for a prompt's padding."""


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
    again, if not at its beginning. A session that `is_leaving` gives its blocks back at the next
    chunk edge. It begins no chunk from `chunk_limit` on. `siblings` names sessions
    that begin with the same history.
    """

    def __init__(
        self,
        request: VideoRequest,
        params: ResolvedParams,
        config: HeliosConfig,
        *,
        arrival: float,
        snapshot: Snapshot | None = None,
        siblings: tuple[str, ...] = (),
    ) -> None:
        self.request = request
        self.params = params
        self.siblings = siblings
        self.config = config
        self.geometry = Geometry(params.height, params.width)
        self.clock = PlaybackClock(arrival=arrival, fps=params.fps)
        self.status = SessionStatus.WAITING
        self.snapshot = snapshot
        self.encoded: dict[str, EncodedPrompt] = {}
        self.pending_switches: deque[PromptSwitch] = deque()
        self._unsent: list[EncodedPrompt] = []
        self.cursor = StepCursor(self.edge_chunk, 0, 0)
        self.worker_id: str | None = None
        self.in_flight = 0
        self.reserved_rows = 0
        self.is_suspect = False
        self.lone_deaths: Counter[StepCursor | None] = Counter()
        self.placed_chunk = self.edge_chunk
        self.is_leaving = False
        self.chunk_limit = self.params.num_chunks
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
    def is_runnable(self) -> bool:
        """Whether its next step may be given to a worker."""
        return self.cursor.chunk < self.chunk_limit or not self.at_chunk_edge

    @property
    def is_going(self) -> bool:
        """Whether its blocks come free without anyone doing more about it."""
        ended = self.status is SessionStatus.PREEMPTED or self.status.is_finished
        return ended or self.is_leaving or self.is_planned

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
        return self.tokens_at(self.cursor.stage)

    def tokens_at(self, stage: int) -> int:
        """Tokens of a step at `stage`: history and noise, under every prompt."""
        noise = self.geometry.noise_tokens(stage, self.config.stages)
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
        return whole * self.params.fps / CHUNK_FRAMES

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
        return 0 if self.snapshot is None else self.snapshot.num_frames

    @property
    def at_snapshot(self) -> bool:
        """Whether its history where it runs is that of its snapshot."""
        return self.snapshot is not None and self.cursor.chunk == self.snapshot.chunk

    def continues(self, other: "Session") -> bool:
        """Whether both have snapshots with the same history; cheap if one has the other's bytes."""
        mine, its = self.snapshot, other.snapshot
        if mine is None or its is None or mine.chunk != its.chunk:
            return False
        return mine.anchor == its.anchor and mine.frames == its.frames

    @property
    def missing_prompts(self) -> tuple[str, ...]:
        """Texts that were not read yet."""
        negative = (self.params.negative_prompt,) if self.params.is_guided else ()
        needed = dict.fromkeys((*self.request.prompts, *negative))
        return tuple(text for text in needed if text not in self.encoded)

    @property
    def needs_seed(self) -> bool:
        """Whether its image or video has still to be made the history it begins with."""
        return self.request.has_reference and self.snapshot is None

    @property
    def is_ready(self) -> bool:
        """Whether all is there that its first chunk takes."""
        return not self.needs_seed and not self.missing_prompts

    @property
    def text_rows(self) -> int:
        """Rows of cross-attention keys and values that it holds at a time, at most."""
        longest = max(self.encoded[text].num_tokens for text in self.request.prompts)
        rows = longest + PADDING_ROWS
        if self.params.is_guided:
            rows += self.encoded[self.params.negative_prompt].num_tokens + PADDING_ROWS
        return rows

    def seed(self, snapshot: Snapshot) -> None:
        """The history that its reference makes is there; the reference is of no more use."""
        self.snapshot = snapshot
        self.request = self.request.without_media()

    def learn(self, prompt: EncodedPrompt) -> None:
        """A prompt was read. A worker that has the session hears of it with its next chunk."""
        if prompt.prompt not in self.encoded:
            self._unsent.append(prompt)
        self.encoded[prompt.prompt] = prompt

    def take_unsent(self) -> tuple[EncodedPrompt, ...]:
        unsent, self._unsent = tuple(self._unsent), []
        return unsent

    def mix(self, chunk: int) -> tuple[PromptWeight, ...]:
        """The prompts in effect at `chunk`."""
        return prompt_weights(self.request.prompt, self.request.params, chunk)

    def apply_switches(self) -> Iterator[tuple[str, PromptSwitch | None]]:
        """Turn to the prompts that wait for it and were read, from the next unplanned chunk on.

        Yields each prompt and its switch, or None where the video has no chunk left for it.
        """
        while self.pending_switches and self.pending_switches[0].prompt in self.encoded:
            asked = self.pending_switches.popleft()
            chunk = max(1, self.cursor.chunk + (not self.at_chunk_edge))
            if chunk >= self.params.num_chunks:
                yield asked.prompt, None
                continue
            applied = PromptSwitch(chunk, asked.prompt, asked.transition_chunks)
            self.request = self.request.with_switch(applied)
            yield asked.prompt, applied

    def drop_switches(self, prompts: tuple[str, ...]) -> Iterator[str]:
        """Some prompts cannot be read: yields each prompt that was to be switched to."""
        for switch in [item for item in self.pending_switches if item.prompt in prompts]:
            self.pending_switches.remove(switch)
            yield switch.prompt

    def rewind(self) -> None:
        """Back to the last confirmed chunk edge: what was planned after it is lost."""
        self.cursor = StepCursor(self.edge_chunk, 0, 0)
        self.in_flight = self.reserved_rows = 0
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

    def makes_anchor(self, chunk: int) -> bool:
        """Whether the first frame of `chunk` becomes the anchor, as in diffusers 0.42.1."""
        if chunk == 0:
            return self.snapshot is None
        return chunk == 1 and self.params.skip_first_chunk

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
