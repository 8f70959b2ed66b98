"""Events that the engine reports about its requests."""

from typing import NamedTuple

from helios_serve.messages import Segment, Snapshot, StepCursor, TensorData
from helios_serve.options.sampling import PromptSwitch
from helios_serve.stage_seconds import NOTHING_SPENT, StageSeconds
from helios_serve.video_request import Frames, VideoRequest


class StepTaken(NamedTuple):
    """One denoise step of a request is done."""

    request_id: str
    cursor: StepCursor


class ChunkReady(NamedTuple):
    """A decoded chunk, as frames or as a segment. A request's chunks come in order, each once.

    `latents` are (1, 16, 9, height / 8, width / 8); `snapshot` resumes the video after this chunk.
    `input_latents` come with the first chunk of a request that asks for them. `spent` is the time
    that the chunk took in each stage, and `traceparent` names the request's trace.
    """

    request_id: str
    chunk: int
    frames: Frames | None
    segment: Segment | None
    latents: TensorData
    snapshot: Snapshot
    input_latents: TensorData | None = None
    spent: StageSeconds = NOTHING_SPENT
    traceparent: str | None = None


class PromptSwitched(NamedTuple):
    """A requested switch to `prompt` takes effect. `switch` is None if no chunk is left for it.

    `request` is the request with the switch, without its reference.
    """

    request_id: str
    prompt: str
    switch: PromptSwitch | None
    request: VideoRequest


class RequestFinished(NamedTuple):
    """All chunks of a request were reported."""

    request_id: str


class RequestFailed(NamedTuple):
    """A request cannot be continued; its reported chunks stay valid."""

    request_id: str
    message: str


EngineEvent = StepTaken | ChunkReady | PromptSwitched | RequestFinished | RequestFailed
