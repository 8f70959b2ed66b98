"""A session as the scheduler sees it: a cursor, a status, its prompts and its costs."""

import enum
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from helios_serve.core.cost import SessionCost
from helios_serve.messages import EncodedPrompt, Snapshot, StepCursor
from helios_serve.model_config import CHUNK_FRAMES, Geometry, HeliosConfig
from helios_serve.options.sampling import PromptSwitch, ResolvedParams
from helios_serve.video_request import PromptWeight, VideoRequest, prompt_weights

PADDING_ROWS = 4
"""Text rows, at most, that stand for a prompt's padding."""


class SessionPrompts:
    """`texts` are shown at some chunk or other; a guided session has a `negative` one as well.

    `encoded` has all prompts that were encoded for the session, by text. `missing` are those still
    to be encoded before its first chunk. `text_rows` is the number of rows of cross-attention keys
    and values that it holds at a time, at most; it counts from when none is missing. `pending` are
    switches whose chunk is not decided, in the order in which they were requested.
    """

    def __init__(self, texts: Sequence[str], negative: str | None) -> None:
        self.encoded: dict[str, EncodedPrompt] = {}
        self.pending: deque[PromptSwitch] = deque()
        self._negative = negative
        self._unsent: list[EncodedPrompt] = []
        self.set_texts(texts)

    def set_texts(self, texts: Sequence[str]) -> None:
        """A switch has changed which prompts are shown."""
        self._texts = tuple(texts)
        self._update()

    def learn(self, prompt: EncodedPrompt) -> None:
        """A prompt was encoded. The session's worker gets it with the next chunk."""
        if prompt.prompt not in self.encoded:
            self._unsent.append(prompt)
        self.encoded[prompt.prompt] = prompt
        self._update()

    def take_unsent(self) -> tuple[EncodedPrompt, ...]:
        """Prompts that were encoded since the last call."""
        unsent, self._unsent = tuple(self._unsent), []
        return unsent

    def take_all(self) -> tuple[EncodedPrompt, ...]:
        """All encoded prompts, for a worker that has none of them."""
        self._unsent.clear()
        return tuple(self.encoded.values())

    def take_switches(self) -> Iterator[PromptSwitch]:
        """Pending switches whose prompts are encoded; each waits for those before it."""
        while self.pending and self.pending[0].prompt in self.encoded:
            yield self.pending.popleft()

    def drop_switches(self, texts: Sequence[str]) -> Iterator[str]:
        """Drop pending switches to prompts that cannot be encoded; yields the prompt of each."""
        for switch in [item for item in self.pending if item.prompt in texts]:
            self.pending.remove(switch)
            yield switch.prompt

    def _update(self) -> None:
        negative = () if self._negative is None else (self._negative,)
        needed = dict.fromkeys((*self._texts, *negative))
        self.missing = tuple(text for text in needed if text not in self.encoded)
        self.text_rows = self._rows(self._texts) + (self._rows(negative) if negative else 0)

    def _rows(self, texts: Sequence[str]) -> int:
        """Rows of the longest of some prompts."""
        known = (self.encoded[text].num_tokens for text in texts if text in self.encoded)
        return max(known, default=0) + PADDING_ROWS


class PlaybackClock:
    """Deadlines of one session's chunks: chunk 0 at once, the others as a player consumes them.

    Chunk k is due at (delivery of chunk 0) + buffer + k * 33 / fps; pauses shift it. All times are
    seconds of one monotonic clock.
    """

    def __init__(self, *, arrival: float, fps: int) -> None:
        self.arrival = arrival
        self.period = CHUNK_FRAMES / fps
        self.started: float | None = None
        self._shift = 0.0
        self._paused_at: float | None = None

    def deadline(self, chunk: int, buffer: float) -> float:
        """When `chunk` is due; before the first delivery everything is due since its arrival."""
        if self.started is None:
            return self.arrival
        return self.started + buffer + chunk * self.period + self._shift

    def deliver_first(self, now: float) -> None:
        if self.started is None:
            self.started, self._shift = now, 0.0
            if self._paused_at is not None:
                self._paused_at = now

    def pause(self, now: float) -> None:
        if self._paused_at is None:
            self._paused_at = now

    def resume(self, now: float) -> None:
        """Deadlines move by the length of the pause."""
        if self._paused_at is not None:
            self._shift += now - self._paused_at
            self._paused_at = None

    @property
    def is_paused(self) -> bool:
        return self._paused_at is not None


class SessionStatus(enum.IntEnum):
    """Where a session is in its life; it has ended from FINISHED_COMPLETED on."""

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


class AppliedSwitch(NamedTuple):
    """A requested switch to `prompt`; `switch` is None where the video has no chunk left for it."""

    prompt: str
    switch: PromptSwitch | None


class Session:
    """One video that is being made.

    `cursor` is the next step to plan. Plans do not wait for results, so the cursor is ahead of the
    workers by `in_flight` steps. `snapshot` is where the session can resume, if not at its
    beginning. A session that `is_leaving` gives its blocks back at the next chunk edge. It begins
    no chunk from `chunk_limit` on. `siblings` names sessions that begin with the same history.
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
        self.geometry = Geometry(params.height, params.width)
        self.cost = SessionCost(config, self.geometry, params)
        negative = params.negative_prompt if params.is_guided else None
        self.prompts = SessionPrompts(request.prompts, negative)
        self.clock = PlaybackClock(arrival=arrival, fps=params.fps)
        self.status = SessionStatus.WAITING
        self.snapshot = snapshot
        self.cursor = StepCursor(self.edge_chunk, 0, 0)
        self.worker_id: str | None = None
        self.in_flight = 0
        self.reserved_rows = 0
        self.is_suspect = False
        self.lone_deaths: Counter[StepCursor | None] = Counter()
        self.placed_chunk = self.edge_chunk
        self.is_leaving = False
        self.is_counted = True
        """Whether it counts against its tenant's limits."""
        self.chunk_limit = params.num_chunks

    @property
    def session_id(self) -> str:
        return self.request.request_id

    @property
    def is_priority(self) -> bool:
        return self.request.tier == "priority"

    @property
    def is_new(self) -> bool:
        """Whether no chunk of it was delivered yet."""
        return self.clock.started is None

    @property
    def is_planned(self) -> bool:
        """Whether every step was given to a worker."""
        return self.cursor.chunk == self.params.num_chunks

    @property
    def is_runnable(self) -> bool:
        """Whether its next step may be given to a worker."""
        return self.cursor.chunk < self.chunk_limit or not self.at_chunk_edge

    @property
    def is_going(self) -> bool:
        """Whether its blocks will be freed without anything more being done."""
        ended = self.status is SessionStatus.PREEMPTED or self.status.is_finished
        return ended or self.is_leaving or self.is_planned

    @property
    def at_chunk_edge(self) -> bool:
        return self.cursor.stage == self.cursor.step == 0

    @property
    def step_cost(self) -> float:
        """FLOPs of the next step."""
        return self.cost.steps[self.cursor.stage]

    @property
    def remaining_cost(self) -> float:
        """FLOPs from the cursor to the end of the video."""
        return self.cost.left(self.cursor)

    @property
    def edge_chunk(self) -> int:
        """The chunk at which it can resume."""
        return 0 if self.snapshot is None else self.snapshot.chunk

    @property
    def edge_frames(self) -> int:
        """History frames at the edge where it can resume."""
        return 0 if self.snapshot is None else self.snapshot.num_frames

    @property
    def at_snapshot(self) -> bool:
        """Whether its history on its worker is that of its snapshot."""
        return self.snapshot is not None and self.cursor.chunk == self.snapshot.chunk

    def continues(self, other: "Session") -> bool:
        """Whether both have snapshots with the same history; cheap if one has the other's bytes."""
        mine, its = self.snapshot, other.snapshot
        if mine is None or its is None or mine.chunk != its.chunk:
            return False
        return mine.anchor == its.anchor and mine.frames == its.frames

    @property
    def needs_seed(self) -> bool:
        """Whether its image or video is still to be encoded into its first history."""
        return self.request.has_reference and self.snapshot is None

    @property
    def is_ready(self) -> bool:
        """Whether all inputs of its first chunk are there."""
        return not (self.needs_seed or self.prompts.missing)

    def seed(self, snapshot: Snapshot) -> None:
        """Begin with the history of the encoded reference, which is then dropped."""
        self.snapshot = snapshot
        self.request = self.request.without_media()

    def mix(self, chunk: int) -> tuple[PromptWeight, ...]:
        """The prompts in effect at `chunk`."""
        return prompt_weights(self.request.prompt, self.request.params, chunk)

    def apply_switches(self) -> Iterator[AppliedSwitch]:
        """Switch to the pending prompts that are encoded, at the next chunk that is not planned."""
        for asked in self.prompts.take_switches():
            chunk = max(1, self.cursor.chunk + (not self.at_chunk_edge))
            if chunk >= self.params.num_chunks:
                yield AppliedSwitch(asked.prompt, None)
                continue
            applied = PromptSwitch(chunk, asked.prompt, asked.transition_chunks)
            self.request = self.request.with_switch(applied)
            self.prompts.set_texts(self.request.prompts)
            yield AppliedSwitch(asked.prompt, applied)

    def rewind(self) -> None:
        """Return to the last confirmed chunk edge: what was planned after it is lost."""
        self.cursor = StepCursor(self.edge_chunk, 0, 0)
        self.in_flight = self.reserved_rows = 0
        self.worker_id = None
        self.is_leaving = False

    def clear_suspicion(self) -> None:
        """It has finished a chunk, so it was not the cause of its workers' deaths."""
        self.is_suspect = False
        self.lone_deaths.clear()

    @property
    def may_leave(self) -> bool:
        """Whether it can be evicted now: at a chunk edge, with a chunk made on its worker, so that
        every placement makes progress."""
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
