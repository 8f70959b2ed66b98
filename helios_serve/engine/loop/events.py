"""What the engine tells of its requests."""

from typing import NamedTuple

from helios_serve.messages import Segment, Snapshot, StepCursor, TensorData
from helios_serve.options.sampling import PromptSwitch
from helios_serve.video_request import Frames, VideoRequest


class StepTaken(NamedTuple):
    """One denoise step of a request is done."""

    request_id: str
    cursor: StepCursor


class ChunkReady(NamedTuple):
    """Chunks come in order, each once: frames or a segment, and the latents behind them.

    From `snapshot` the video can be gone on with behind the chunk. `input_latents` come with the
    first chunk of a request that keeps them. `device_seconds` is the chunk's part of the time that
    workers took for its denoise steps.
    """

    request_id: str
    chunk: int
    frames: Frames | None
    segment: Segment | None
    latents: TensorData
    snapshot: Snapshot
    input_latents: TensorData | None = None
    device_seconds: float = 0.0


class PromptSwitched(NamedTuple):
    """The switch to `prompt` that was asked for takes effect; None where no chunk is left for it.

    `request` is the request with it, less its reference.
    """

    request_id: str
    prompt: str
    switch: PromptSwitch | None
    request: VideoRequest


class RequestFinished(NamedTuple):
    """All chunks were handed on."""

    request_id: str


class RequestFailed(NamedTuple):
    """The request cannot go on; chunks that were handed on stay good."""

    request_id: str
    message: str


EngineEvent = StepTaken | ChunkReady | PromptSwitched | RequestFinished | RequestFailed
