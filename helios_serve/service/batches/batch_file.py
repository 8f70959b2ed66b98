"""Batch files: one request a line, in the words of the API."""

from pathlib import Path

import msgspec

from helios_serve.errors import InvalidRequestError
from helios_serve.media.references import load_image, load_video
from helios_serve.options.sampling import PromptSwitch, SamplingParams, default_size
from helios_serve.options.scheduling import ServiceTier
from helios_serve.size import parse_size
from helios_serve.video_request import VideoRequest

URL = "/v1/videos"
MAX_SECONDS = 3600


class BatchBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One video. `size` is WIDTHxHEIGHT; `image`, `video` and `lora` are files, named from where
    the batch file lies; what is left out has the default of the model."""

    prompt: str
    model: str | None = None
    size: str | None = None
    seconds: float | None = None
    num_frames: int | None = None
    fps: int = 24
    seed: int = 0
    steps: tuple[int, ...] | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    negative_prompt: str = ""
    switches: tuple[PromptSwitch, ...] = ()
    transition_chunks: int = 3
    image: str | None = None
    video: str | None = None
    lora: str | None = None
    lora_scale: float = 1.0
    user: str = "default"
    service_tier: ServiceTier = "default"


class NamedLine(msgspec.Struct, frozen=True):
    """Whatever else a line of a batch file says."""

    custom_id: str


class BatchFileLine(NamedLine, frozen=True):
    """A line of a batch file, as of OpenAI's batches."""

    body: BatchBody
    method: str = "POST"
    url: str = URL


def custom_id(text: bytes) -> str | None:
    """What a line calls itself, also where the rest of it is no request."""
    try:
        return msgspec.json.decode(text, type=NamedLine).custom_id
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def parse_line(text: bytes) -> BatchFileLine:
    """Raises InvalidRequestError for anything else than a request for a video."""
    try:
        line = msgspec.json.decode(text, type=BatchFileLine)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequestError(
            f"got a line that is no request: {error}", param="body"
        ) from error
    if (line.method, line.url) != ("POST", URL):
        raise InvalidRequestError(f"got {line.method} {line.url}, expected POST {URL}", param="url")
    return line


def read_request(line: BatchFileLine, folder: Path, model: str) -> VideoRequest:
    """The request of a line, its reference read from `folder`; raises InvalidRequestError."""
    body = line.body
    width, height = default_size(model) if body.size is None else parse_size(body.size)
    params = SamplingParams(
        width=width,
        height=height,
        num_frames=count_frames(body),
        fps=body.fps,
        seed=body.seed,
        steps=body.steps,
        num_inference_steps=body.num_inference_steps,
        guidance_scale=body.guidance_scale,
        negative_prompt=body.negative_prompt,
        switches=body.switches,
        transition_chunks=body.transition_chunks,
    )
    size = {"width": width, "height": height}
    request = VideoRequest(
        request_id=line.custom_id,
        prompt=body.prompt,
        model=body.model or model,
        params=params,
        image=None if body.image is None else load_image(folder / body.image, **size),
        video=None if body.video is None else load_video(folder / body.video, **size),
        lora=None if body.lora is None else str((folder / body.lora).absolute()),
        lora_scale=body.lora_scale,
        tenant=body.user,
        tier=body.service_tier,
        output="segment",
    )
    request.check_inputs()
    return request


def count_frames(body: BatchBody) -> int:
    if body.seconds is None:
        return SamplingParams().num_frames if body.num_frames is None else body.num_frames
    if not 0 < body.seconds <= MAX_SECONDS:
        raise InvalidRequestError(
            f"got seconds {body.seconds:g}, expected more than 0, up to {MAX_SECONDS}",
            param="seconds",
        )
    if body.num_frames is not None:
        raise InvalidRequestError(
            f"got both seconds {body.seconds:g} and num_frames {body.num_frames}, expected one",
            param="seconds",
        )
    return max(1, round(body.seconds * body.fps))
