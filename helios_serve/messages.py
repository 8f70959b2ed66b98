"""Messages between the engine and its workers.

The engine sends a `WorkerCommand`; a worker answers with `WorkerEvent`s. Executors that run workers
in other processes encode both as msgpack.
"""

from typing import NamedTuple

import msgspec

from helios_serve.size import Size
from helios_serve.video_request import Frames, OutputKind, PromptWeight, VideoRequest

NULL_BLOCK = 0
"""Id of the block of every history pool that holds zeros and is never written."""


class StepCursor(NamedTuple):
    """Position of a denoise step: its chunk, the stage in the chunk and the step in the stage.

    All three count from 0. Schedules are pure functions of the cursor.
    """

    chunk: int
    stage: int
    step: int


class ChunkBlocks(NamedTuple):
    """The block table of one chunk.

    `window` lists the blocks of the anchor and of the last 19 latent frames, oldest first; frames
    that do not exist yet are null blocks. `append` lists the blocks that the chunk's nine latent
    frames are written to. Both are flat: frame by frame, and row by row of tiles in a frame. With
    `new_anchor` the chunk's first latent frame becomes the anchor of the following chunks.
    """

    window: tuple[int, ...]
    append: tuple[int, ...]
    new_anchor: bool = False


class TensorData(msgspec.Struct, frozen=True):
    """A tensor as raw bytes, row major. `dtype` is its name in torch, such as `bfloat16`."""

    data: bytes
    shape: tuple[int, ...]
    dtype: str


class Snapshot(msgspec.Struct, frozen=True):
    """The state from which a session resumes at `chunk`: its generator and its history.

    `rng` is the generator's state before the first draw for `chunk`; a fork sets `reseed`, with
    which the generator is seeded instead. `anchor` and `frames` are rows of history blocks as raw
    bytes in `dtype` (a torch name), in the pool's layout; `frames` holds `num_frames` latent
    frames, oldest first. `height` and `width` are the video's, in pixels. A snapshot at chunk 0
    holds the history of a request with a reference image or video.
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
    """Text encoder states of a prompt, without padding: (tokens, text_dim)."""

    prompt: str
    states: TensorData

    @property
    def num_tokens(self) -> int:
        return self.states.shape[0]


class EncodeTask(msgspec.Struct, frozen=True, tag=True):
    """A task to encode prompts and, with `seed_from`, that request's reference into a history.

    Prompts are truncated to `max_sequence_length` tokens.
    """

    session_id: str
    prompts: tuple[str, ...]
    max_sequence_length: int
    seed_from: VideoRequest | None = None


class DecodeTask(msgspec.Struct, frozen=True, tag=True):
    """A task to decode the latents of a finished chunk into its first `num_frames` frames.

    `latents` is (1, 16, 9, height / 8, width / 8), or None for the worker that denoised the chunk,
    which has kept them; LatentsMissing asks for them. `output` selects pixels or an MP4 segment, at
    `fps` frames per second. Frames are scaled and cropped to `shown_size`; None keeps the sampled
    size. After the chunk that `is_last`, the decoder's state of the session is not needed.
    """

    session_id: str
    chunk: int
    latents: TensorData | None
    num_frames: int
    fps: int
    output: OutputKind
    shown_size: Size | None = None
    is_last: bool = False


class NewSession(msgspec.Struct, frozen=True):
    """A session to open on a worker, from `snapshot` if there is one.

    The worker writes the snapshot's anchor to the blocks in `blocks.window` and its frames to those
    in `blocks.append`. Both are empty without a snapshot, and for a fork that shares the blocks of
    another session. `prompts` holds the encoded prompts that the session needs.
    """

    session_id: str
    request: VideoRequest
    blocks: ChunkBlocks
    snapshot: Snapshot | None = None
    prompts: tuple[EncodedPrompt, ...] = ()


class ChunkStart(msgspec.Struct, frozen=True):
    """The inputs of a chunk.

    `blocks` is its block table, `mix` the prompts in effect with their weights, and `new_prompts`
    the encoded prompts that the worker does not have yet.
    """

    blocks: ChunkBlocks
    mix: tuple[PromptWeight, ...]
    new_prompts: tuple[EncodedPrompt, ...] = ()


class ScheduledStep(msgspec.Struct, frozen=True):
    """One denoise step of one session. The first step of a chunk carries its `start`."""

    session_id: str
    cursor: StepCursor
    start: ChunkStart | None = None


class SchedulerOutput(msgspec.Struct, frozen=True, tag=True):
    """A worker's next plan: close `finished` sessions, open the new ones, then run the steps."""

    new_sessions: tuple[NewSession, ...] = ()
    scheduled_steps: tuple[ScheduledStep, ...] = ()
    finished: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.new_sessions or self.scheduled_steps or self.finished)


WorkerCommand = SchedulerOutput | EncodeTask | DecodeTask


class ChunkResult(msgspec.Struct, frozen=True):
    """A finished chunk: its nine latent frames, and the session's snapshot after it.

    `latents` is (1, 16, 9, height / 8, width / 8).
    """

    session_id: str
    chunk: int
    latents: TensorData
    snapshot: Snapshot


class SessionFailure(msgspec.Struct, frozen=True):
    """A session that failed. The other sessions of its batch continue."""

    session_id: str
    message: str


class RunnerOutput(msgspec.Struct, frozen=True):
    """The results of a plan. `forward_seconds` is the time spent in the transformer's forwards."""

    chunks: tuple[ChunkResult, ...] = ()
    failures: tuple[SessionFailure, ...] = ()
    forward_seconds: float = 0.0


class WorkerInfo(msgspec.Struct, frozen=True):
    """What a worker runs on: the name of its device, and how it computes there.

    `kernels` is triton or reference. `attention` is the path of self-attention, and `library` the
    package behind it with its version; both are empty for a worker that does not denoise.
    """

    device: str = ""
    kernels: str = ""
    attention: str = ""
    library: str = ""


class WorkerReady(msgspec.Struct, frozen=True, tag=True):
    """The worker has loaded its model and accepts commands.

    `num_blocks` is the size of its history pool, and `text_rows` the number of prompt tokens whose
    cross-attention keys and values fit in its memory. `flops` is the FLOP/s of its matrix products,
    which its steps do not exceed. All are 0 for a worker that does not denoise. At those FLOP/s,
    the convolutions of its VAE encode `encode_pixels` a second, and decode `decode_pixels`: 0 for a
    worker without one.
    """

    num_blocks: int = 0
    text_rows: int = 0
    flops: float = 0.0
    encode_pixels: float = 0.0
    decode_pixels: float = 0.0
    info: WorkerInfo = WorkerInfo()


class StepsDone(msgspec.Struct, frozen=True, tag=True):
    """The worker finished its oldest plan, which took `seconds`.

    `cpu_seconds` is the CPU time of the worker's process since it started, 0 if it does not say.
    """

    output: RunnerOutput
    seconds: float
    cpu_seconds: float = 0.0


class InputsEncoded(msgspec.Struct, frozen=True, tag=True):
    """The result of an `EncodeTask`, or its `error`.

    `snapshot` holds the history that the reference was encoded to, and `input_latents` its noised
    latents (1, 16, latent frames, height / 8, width / 8), if the request asks for them.
    """

    session_id: str
    prompts: tuple[EncodedPrompt, ...] = ()
    snapshot: Snapshot | None = None
    input_latents: TensorData | None = None
    error: str | None = None
    seconds: float = 0.0


class Segment(msgspec.Struct, frozen=True):
    """One chunk of a video as MP4: `header` and the fragments of all chunks form a whole file."""

    header: bytes
    fragment: bytes


class LatentsMissing(msgspec.Struct, frozen=True, tag=True):
    """The worker has no latents for a `DecodeTask` that came without: send it again with them."""

    session_id: str
    chunk: int


class ChunkRendered(msgspec.Struct, frozen=True, tag=True):
    """The device has made the frames of a `DecodeTask`, in `seconds`, and can begin another one.

    ChunkDecoded follows when the frames are encoded.
    """

    session_id: str
    chunk: int
    seconds: float


class ChunkDecoded(msgspec.Struct, frozen=True, tag=True):
    """The result of a `DecodeTask`: frames or a segment, or the `error`.

    `seconds` is the time of making and encoding frames, without waiting in between.
    """

    session_id: str
    chunk: int
    frames: Frames | None = None
    segment: Segment | None = None
    error: str | None = None
    seconds: float = 0.0


class WorkerDied(msgspec.Struct, frozen=True, tag=True):
    """The worker ended, and its state is lost.

    `is_final` means that a new worker with the same configuration would fail in the same way.
    """

    reason: str
    is_final: bool = False


WorkerEvent = (
    WorkerReady
    | StepsDone
    | InputsEncoded
    | LatentsMissing
    | ChunkRendered
    | ChunkDecoded
    | WorkerDied
)
