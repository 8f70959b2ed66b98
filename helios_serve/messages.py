"""What the engine and the workers say to each other."""

from typing import NamedTuple

import msgspec

from helios_serve.size import Size
from helios_serve.video_request import Frames, OutputKind, PromptWeight, VideoRequest

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


class TensorData(msgspec.Struct, frozen=True):
    """A tensor as raw bytes; `dtype` is torch's name."""

    data: bytes
    shape: tuple[int, ...]
    dtype: str


class Snapshot(msgspec.Struct, frozen=True):
    """All that a session needs to go on at `chunk`: its generator and its history, as raw bytes.

    `anchor` and the `num_frames` of `frames` are rows of blocks in `dtype`, torch's name, as the
    pool holds them; `rng` is the generator's state before the first draw of the chunk. Chunk 0 has
    a snapshot where an image or a video comes before it. A fork seeds its generator with `reseed`.
    `height` and `width` are the video's, in pixels.
    """

    chunk: int
    rng: bytes
    anchor: bytes
    frames: bytes
    num_frames: int
    dtype: str
    height: int
    width: int
    reseed: int | None = None


class EncodedPrompt(msgspec.Struct, frozen=True, weakref=True):
    """The text encoder's states of a prompt's real tokens: (tokens, text_dim)."""

    prompt: str
    states: TensorData

    @property
    def num_tokens(self) -> int:
        return self.states.shape[0]


class EncodeTask(msgspec.Struct, frozen=True, tag=True):
    """Prompts to be read, and the reference of `seed_from`, if any, to be made a history."""

    session_id: str
    prompts: tuple[str, ...]
    max_sequence_length: int
    seed_from: VideoRequest | None = None


class DecodeTask(msgspec.Struct, frozen=True, tag=True):
    """The latents of a finished chunk, to be turned into its first `num_frames` frames.

    `output` says whether they are wanted as pixels or as a segment of an MP4 at `fps`; `shown_size`
    is their width and height, if not the size that was sampled.
    """

    session_id: str
    chunk: int
    latents: TensorData
    num_frames: int
    fps: int
    output: OutputKind
    shown_size: Size | None = None


class NewSession(msgspec.Struct, frozen=True):
    """A session that the worker has not seen, or has to take up again from `snapshot`.

    The snapshot's anchor is to be put into `blocks.window` and its frames into `blocks.append`;
    both are empty where there is none, or where the session shares the blocks of another.
    """

    session_id: str
    request: VideoRequest
    blocks: ChunkBlocks
    snapshot: Snapshot | None = None
    prompts: tuple[EncodedPrompt, ...] = ()


class ChunkStart(msgspec.Struct, frozen=True):
    """What a chunk begins with: its blocks, the prompts in effect, and those new to the worker."""

    blocks: ChunkBlocks
    mix: tuple[PromptWeight, ...]
    new_prompts: tuple[EncodedPrompt, ...] = ()


class ScheduledStep(msgspec.Struct, frozen=True):
    """One denoise step of one session; `start` comes with the first step of a chunk."""

    session_id: str
    cursor: StepCursor
    start: ChunkStart | None = None


class SchedulerOutput(msgspec.Struct, frozen=True, tag=True):
    """What a worker is to do next: close `finished`, open the new, and then take the steps."""

    new_sessions: tuple[NewSession, ...] = ()
    scheduled_steps: tuple[ScheduledStep, ...] = ()
    finished: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.new_sessions or self.scheduled_steps or self.finished)


WorkerCommand = SchedulerOutput | EncodeTask | DecodeTask


class ChunkResult(msgspec.Struct, frozen=True):
    """A finished chunk: its nine latent frames, and where the session stands behind it.

    `latents` is (1, 16, 9, height / 8, width / 8).
    """

    session_id: str
    chunk: int
    latents: TensorData
    snapshot: Snapshot


class SessionFailure(msgspec.Struct, frozen=True):
    """A session that cannot go on; its batch-mates do."""

    session_id: str
    message: str


class RunnerOutput(msgspec.Struct, frozen=True):
    """What came of a plan; `forward_seconds` of its time went into the transformer."""

    chunks: tuple[ChunkResult, ...] = ()
    failures: tuple[SessionFailure, ...] = ()
    forward_seconds: float = 0.0


class WorkerReady(msgspec.Struct, frozen=True, tag=True):
    """What the worker is for is loaded.

    Its history pool has `num_blocks` blocks, and there is room for the cross-attention keys and
    values of `text_rows` prompt tokens; both are 0 for one that does not denoise.
    """

    num_blocks: int = 0
    text_rows: int = 0


class StepsDone(msgspec.Struct, frozen=True, tag=True):
    """The oldest plan is done, in `seconds`."""

    output: RunnerOutput
    seconds: float


class InputsEncoded(msgspec.Struct, frozen=True, tag=True):
    """What an encode task gave, or the error; `snapshot` is the history that a reference makes."""

    session_id: str
    prompts: tuple[EncodedPrompt, ...] = ()
    snapshot: Snapshot | None = None
    input_latents: TensorData | None = None
    error: str | None = None
    seconds: float = 0.0


class Segment(msgspec.Struct, frozen=True):
    """One chunk of a video as MP4: `header` + the fragments of all chunks is a playable file."""

    header: bytes
    fragment: bytes


class ChunkDecoded(msgspec.Struct, frozen=True, tag=True):
    """Frames or a segment of a chunk, as its task asked for, or the error."""

    session_id: str
    chunk: int
    frames: Frames | None = None
    segment: Segment | None = None
    error: str | None = None
    seconds: float = 0.0


class WorkerDied(msgspec.Struct, frozen=True, tag=True):
    """The worker is gone, with everything it held.

    `is_final` says that another one would end the same way: its configuration cannot work.
    """

    reason: str
    is_final: bool = False


WorkerEvent = WorkerReady | StepsDone | InputsEncoded | ChunkDecoded | WorkerDied
