"""What the scheduler and the workers say to each other."""

from typing import Literal, NamedTuple

import msgspec

from helios_serve.sampling_params import Frames, VideoRequest

NULL_BLOCK = 0
"""Block 0 of every history pool holds zeros and is never written."""


class StepCursor(NamedTuple):
    """Where a session stands: all schedules are pure functions of it."""

    chunk: int
    stage: int
    step: int


class ChunkBlocks(NamedTuple):
    """What a worker needs to know of the history for one chunk.

    `window` is the anchor and the last 19 frames, oldest first; `append` is where the chunk's own
    nine frames go. Both are flat lists of block ids, frame by frame, tiles row major. With
    `new_anchor` the chunk's first frame is the anchor from then on.
    """

    window: tuple[int, ...]
    append: tuple[int, ...]
    new_anchor: bool = False


class Snapshot(msgspec.Struct, frozen=True):
    """All that a session needs to go on at `chunk`: its generator and its history, as raw bytes.

    `anchor` and `frames` are rows of blocks in `dtype`, torch's name, as the pool holds them;
    `rng` is the generator's state before the first draw of the chunk.
    """

    chunk: int
    rng: bytes
    anchor: bytes
    frames: bytes
    dtype: str


class NewSession(msgspec.Struct, frozen=True):
    """A session that the worker has not seen, or has to take up again from `snapshot`.

    Where it has a history already (I2V, V2V, or a snapshot) `blocks.window` is to take the anchor
    and `blocks.append` the history frames; otherwise both are empty.
    """

    session_id: str
    request: VideoRequest
    blocks: ChunkBlocks
    snapshot: Snapshot | None = None


class ScheduledStep(msgspec.Struct, frozen=True):
    """One denoise step of one session; `blocks` comes with the first step of a chunk."""

    session_id: str
    cursor: StepCursor
    blocks: ChunkBlocks | None = None


class Latents(msgspec.Struct, frozen=True):
    """A (1, 16, frames, height / 8, width / 8) tensor as raw bytes; `dtype` is torch's name."""

    data: bytes
    shape: tuple[int, ...]
    dtype: str


class DecodeTask(msgspec.Struct, frozen=True):
    """The latents of a finished chunk, to be turned into frames."""

    session_id: str
    chunk: int
    latents: Latents


class SchedulerOutput(msgspec.Struct, frozen=True):
    """What a worker is to do next: close `finished`, open the new, and then take the steps.

    `decode` holds chunks of a worker that was lost before it had decoded them.
    """

    new_sessions: tuple[NewSession, ...] = ()
    scheduled_steps: tuple[ScheduledStep, ...] = ()
    finished: tuple[str, ...] = ()
    decode: tuple[DecodeTask, ...] = ()


class ChunkResult(msgspec.Struct, frozen=True):
    """A finished chunk: its nine latent frames, and where the session stands behind it.

    The worker that made it decodes it too, beside later steps. `input_latents` comes with the first
    chunk of a request that keeps them.
    """

    session_id: str
    chunk: int
    latents: Latents
    snapshot: Snapshot
    input_latents: Latents | None = None


class SessionFailure(msgspec.Struct, frozen=True):
    """A session that cannot go on; its batch-mates do."""

    session_id: str
    message: str


class RunnerOutput(msgspec.Struct, frozen=True):
    chunks: tuple[ChunkResult, ...] = ()
    failures: tuple[SessionFailure, ...] = ()


class WorkerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker runs. None for `history_blocks` sizes the pool by the memory left free."""

    model: str
    device: str = "auto"
    dtype: str = "auto"
    load_format: Literal["auto", "dummy"] = "auto"
    history_blocks: int | None = None
    batch_invariant: bool = False


class WorkerReady(msgspec.Struct, frozen=True, tag=True):
    """The model is loaded and the pool has `num_blocks` blocks."""

    num_blocks: int


class StepsDone(msgspec.Struct, frozen=True, tag=True):
    """The oldest plan is done, in `seconds`."""

    output: RunnerOutput
    seconds: float


class ChunkDecoded(msgspec.Struct, frozen=True, tag=True):
    """Frames of a chunk, or why there are none."""

    session_id: str
    chunk: int
    frames: Frames | None
    error: str | None = None


class WorkerDied(msgspec.Struct, frozen=True, tag=True):
    """The worker is gone, with everything it held.

    `is_final` says that another one would end the same way: its configuration cannot work.
    """

    reason: str
    is_final: bool = False


WorkerEvent = WorkerReady | StepsDone | ChunkDecoded | WorkerDied
