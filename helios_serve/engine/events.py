"""What the engine tells of its requests."""

from typing import NamedTuple

from helios_serve.messages import Latents, StepCursor
from helios_serve.sampling_params import Frames


class StepTaken(NamedTuple):
    """One denoise step of a request is done."""

    request_id: str
    cursor: StepCursor


class ChunkReady(NamedTuple):
    """Chunks come in order, each once: 33 frames and the latents behind them."""

    request_id: str
    chunk: int
    frames: Frames
    latents: Latents
    input_latents: Latents | None


class RequestFinished(NamedTuple):
    """All chunks were handed on."""

    request_id: str


class RequestFailed(NamedTuple):
    """The request cannot go on; chunks that were handed on stay good."""

    request_id: str
    message: str


EngineEvent = StepTaken | ChunkReady | RequestFinished | RequestFailed
