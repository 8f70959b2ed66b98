"""From the API's words to what the engine makes."""

import secrets

import msgspec

from helios_serve.errors import InvalidRequestError
from helios_serve.model_config import CHUNK_FRAMES, HeliosConfig, num_chunks
from helios_serve.options.sampling import (
    MAX_FRAMES,
    PromptSwitch,
    SamplingOptions,
    SamplingParams,
    default_size,
)
from helios_serve.service.protocol import CreateVideo, ExtendVideo, Json
from helios_serve.size import Size, check_shown_size, nearest_size, parse_size
from helios_serve.video_request import VideoRequest

MAX_SEED = 2**31


def new_id() -> str:
    return f"video_{secrets.token_hex(16)}"


def asked_size(body: CreateVideo, model: str) -> Size:
    """The size of a video from `size`, or width and height; raises InvalidRequestError."""
    if body.size is not None and (body.width is not None or body.height is not None):
        raise InvalidRequestError("got both size and width or height, expected one", param="size")
    if (body.width is None) != (body.height is None):
        raise InvalidRequestError("got one of width and height, expected both", param="size")
    if body.width is not None and body.height is not None:
        return Size(body.width, body.height)
    return default_size(model) if body.size is None else parse_size(body.size)


def asked_frames(body: CreateVideo) -> int:
    if body.seconds is None:
        return SamplingParams().num_frames if body.num_frames is None else body.num_frames
    if body.num_frames is not None:
        raise InvalidRequestError("got both seconds and num_frames, expected one", param="seconds")
    return frames_of(body.seconds, body.fps)


def frames_of(seconds: float, fps: int) -> int:
    if not 0 < seconds * fps <= MAX_FRAMES:
        raise InvalidRequestError(
            f"got {seconds:g} seconds at {fps} frames a second, expected at least one frame and "
            f"{MAX_FRAMES} at most",
            param="seconds",
        )
    return max(1, round(seconds * fps))


def sampled_size(size: Size, body: CreateVideo, config: HeliosConfig) -> Size:
    """What the model makes where that may differ from what is shown; with the policy "exact" it
    may not."""
    if body.size_policy == "exact":
        return size
    check_shown_size(*size)
    return nearest_size(*size, config)


def creation(body: CreateVideo, model: str, size: Size, shown: Size, tenant: str) -> VideoRequest:
    """A new video, less its reference; raises InvalidRequestError for what no model makes."""
    if body.steps is not None and body.pyramid_num_inference_steps_list is not None:
        raise InvalidRequestError(
            "got both steps and pyramid_num_inference_steps_list, expected one", param="steps"
        )
    options = {name: getattr(body, name) for name in SamplingOptions.__struct_fields__}
    options["steps"] = body.steps or body.pyramid_num_inference_steps_list
    params = SamplingParams(
        **options,
        width=size.width,
        height=size.height,
        num_frames=asked_frames(body),
        seed=secrets.randbelow(MAX_SEED) if body.seed is None else body.seed,
    )
    return VideoRequest(
        request_id=new_id(),
        prompt=body.prompt,
        model=model,
        params=params,
        lora_scale=body.lora_scale,
        tenant=tenant,
        tier="default" if body.service_tier == "auto" else body.service_tier,
        output="segment",
        shown_size=None if shown == size else shown,
    )


def remix(request: VideoRequest, prompt: str) -> VideoRequest:
    """The same seed, size, length and reference, and another prompt from beginning to end.

    It waits for no reader, whatever the first one did.
    """
    params = msgspec.structs.replace(request.params, switches=())
    return msgspec.structs.replace(
        request,
        request_id=new_id(),
        prompt=prompt,
        params=params,
        max_lead_chunks=None,
        parent=request.request_id,
        relation="remix",
        fingerprint=None,
    )


def extension(request: VideoRequest, body: ExtendVideo) -> VideoRequest:
    """The same video with more seconds, under another prompt from its end on if there is one.

    Raises InvalidRequestError where that is no more than the end of the chunk that was cut.
    """
    params = request.params
    edge = num_chunks(params.num_frames)
    total = params.num_frames + frames_of(body.seconds, params.fps)
    if num_chunks(total) == edge:
        least = edge * CHUNK_FRAMES - params.num_frames + 1
        raise InvalidRequestError(
            f"got {body.seconds:g} more seconds, expected at least {least / params.fps:.2f}: those "
            "before are the end of the video's last chunk, which was made already",
            param="seconds",
        )
    longer = msgspec.structs.replace(
        request.without_media(),
        request_id=new_id(),
        params=msgspec.structs.replace(params, num_frames=total),
        max_lead_chunks=None,
        parent=request.request_id,
        relation="extension",
        fingerprint=None,
    )
    return longer if body.prompt is None else longer.with_switch(PromptSwitch(edge, body.prompt))


def continuation(request: VideoRequest, body: ExtendVideo) -> Json:
    """The fields of a video that continues the frames of one without a snapshot.

    It has the sampling options of that one, but for its prompt switches.
    """
    params = request.params
    shared = (*SamplingOptions.__struct_fields__, "seed")
    options = {name: getattr(params, name) for name in shared if name != "switches"}
    return options | {
        "prompt": request.prompt if body.prompt is None else body.prompt,
        "model": request.model,
        "size": str(request.shown_size or Size(params.width, params.height)),
        "size_policy": "exact" if request.shown_size is None else "fit",
        "seconds": body.seconds,
        "lora_scale": request.lora_scale,
        "service_tier": request.tier,
    }
