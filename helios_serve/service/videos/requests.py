"""Builds engine requests for new, remixed, extended and continued videos."""

import secrets
from typing import Any, TypeVar

import msgspec

from helios_serve.errors import InvalidRequestError
from helios_serve.model_config import CHUNK_FRAMES, HeliosConfig, num_chunks
from helios_serve.options.fields import read_options
from helios_serve.options.sampling import (
    ENDLESS_FRAMES,
    MAX_FRAMES,
    PromptSwitch,
    SamplingOptions,
    SamplingParams,
    default_size,
)
from helios_serve.options.vllm_omni import NAMES, check_pyramid, named_as_ours
from helios_serve.service.protocol import CreateVideo, ExtendVideo, Json, LoraChoice
from helios_serve.size import Size, check_shown_size, nearest_size, parse_size
from helios_serve.video_request import Relation, VideoRequest

Body = TypeVar("Body", bound=CreateVideo)

MAX_SEED = 2**31
"""Exclusive maximum of random seeds."""


def with_plain_options(body: Body, config: HeliosConfig) -> Body:
    """Return `body` with `extra_params`, and `lora` as an object, as plain options.

    Raises InvalidRequestError for invalid ones, and for an option that has two different values.
    """
    changes: dict[str, Any] = {"extra_params": None}
    extra = body.extra_params or {}
    check_pyramid(extra, config.stages)
    given = named_as_ours(extra)
    try:
        options = read_options(SamplingOptions, given, strict=False, other_names=NAMES)
    except InvalidRequestError as error:
        raise InvalidRequestError(str(error), param=f"extra_params.{error.param}") from error
    changes |= {name: getattr(options, name) for name in given}
    if isinstance(body.lora, LoraChoice):
        changes["lora"] = adapter_name(body.lora)
        scale = body.lora.lora_scale if body.lora.scale is None else body.lora.scale
        if scale is not None:
            changes["lora_scale"] = scale
    check_single_values(body, changes)
    return msgspec.structs.replace(body, **changes)


def adapter_name(lora: LoraChoice) -> str:
    """Return the name in a `lora` object. Raises InvalidRequestError without one."""
    for name in (lora.name, lora.lora_name, lora.adapter):
        if name is not None:
            return name
    raise InvalidRequestError("got lora without a name, expected `name`", param="lora")


def check_single_values(body: CreateVideo, changes: dict[str, Any]) -> None:
    """Raise InvalidRequestError if `body` already has another value for one of `changes`."""
    defaults = CreateVideo(prompt="")
    for name, value in changes.items():
        current = getattr(body, name)
        is_plain = name not in ("extra_params", "lora")
        if is_plain and current not in (getattr(defaults, name), value):
            raise InvalidRequestError(
                f"got two values for {name}, {current!r} and {value!r}: send only one of them",
                param=name,
            )


def asked_size(body: CreateVideo, model: str) -> Size:
    """Return the requested size of a video, from `size` or from `width` and `height`.

    Without any of them it is the default size of `model`: a folder, a hub id or a built-in model.
    Raises InvalidRequestError if the fields conflict or are malformed.
    """
    if body.size is not None and (body.width is not None or body.height is not None):
        raise InvalidRequestError(
            "got both size and width/height, expected only one of them", param="size"
        )
    if (body.width is None) != (body.height is None):
        raise InvalidRequestError("got only one of width and height, expected both", param="size")
    if body.width is not None and body.height is not None:
        return Size(body.width, body.height)
    return default_size(model) if body.size is None else parse_size(body.size)


def asked_frames(body: CreateVideo) -> int:
    """Return the requested number of frames, from `num_frames`, `seconds` or `endless`."""
    if body.endless:
        if body.seconds is not None or body.num_frames is not None:
            raise InvalidRequestError(
                "got both endless and a length, expected only one of them", param="endless"
            )
        return ENDLESS_FRAMES
    if body.seconds is None:
        return SamplingParams().num_frames if body.num_frames is None else body.num_frames
    if body.num_frames is not None:
        raise InvalidRequestError(
            "got both seconds and num_frames, expected only one of them", param="seconds"
        )
    return frames_of(body.seconds, body.fps)


def frames_of(seconds: float, fps: int) -> int:
    """Return the number of frames in `seconds`. Raises InvalidRequestError if out of range."""
    if not 0 < seconds * fps <= MAX_FRAMES:
        raise InvalidRequestError(
            f"got {seconds:g} seconds at {fps} frames per second, expected more than 0 seconds "
            f"and at most {MAX_FRAMES} frames",
            param="seconds",
        )
    return max(1, round(seconds * fps))


def check_has_end(asked: VideoRequest, what: str) -> None:
    """Refuse a video without an end for `what`, which waits for its end."""
    if asked.params.is_endless:
        raise InvalidRequestError(
            f"got a video without an end for {what}, expected num_frames or seconds",
            param="endless",
        )


def sampled_size(size: Size, body: CreateVideo, config: HeliosConfig) -> Size:
    """Return the size at which the model generates a video that is shown at `size`.

    They are equal with the size policy "exact". With "fit", it is the nearest size that the model
    supports.
    """
    if body.size_policy == "exact":
        return size
    check_shown_size(*size)
    return nearest_size(*size, config)


def creation(
    body: CreateVideo, request_id: str, *, model: str, size: Size, shown: Size, tenant: str
) -> VideoRequest:
    """Build the request for a new video, without its reference.

    `size` is the size at which the model generates; `shown` is the size of the finished video.
    Raises InvalidRequestError for invalid options.
    """
    if body.steps is not None and body.pyramid_num_inference_steps_list is not None:
        raise InvalidRequestError(
            "got both steps and pyramid_num_inference_steps_list, expected only one of them",
            param="steps",
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
        request_id=request_id,
        prompt=body.prompt,
        model=model,
        params=params,
        lora_scale=body.lora_scale,
        tenant=tenant,
        tier="default" if body.service_tier == "auto" else body.service_tier,
        output="segment",
        shown_size=None if shown == size else shown,
    )


def derived(
    request: VideoRequest, request_id: str, *, relation: Relation, params: dict[str, Any]
) -> VideoRequest:
    """Build a request for a video that is derived from `request`, with the given `params` replaced.

    It never waits for a reader, even if `request` belongs to a realtime session.
    """
    return msgspec.structs.replace(
        request,
        request_id=request_id,
        params=msgspec.structs.replace(request.params, **params),
        max_lead_chunks=None,
        pacing="reader",
        parent=request.request_id,
        relation=relation,
        fingerprint=None,
        traceparent=None,
    )


def remix(request: VideoRequest, request_id: str, *, prompt: str) -> VideoRequest:
    """Build a request with the seed, size, length and reference of `request`, and a new prompt."""
    child = derived(request, request_id, relation="remix", params={"switches": ()})
    return msgspec.structs.replace(child, prompt=prompt)


def extension(request: VideoRequest, request_id: str, *, body: ExtendVideo) -> VideoRequest:
    """Build a request that continues `request` from its snapshot, with a new prompt if there is
    one.

    Raises InvalidRequestError if the new length still ends in the same chunk, which is already
    generated and was only cut.
    """
    params = request.params
    if params.is_endless:
        raise InvalidRequestError(
            "got a video without an end to extend, expected one with an end: fork it instead",
            param="video",
        )
    edge = num_chunks(params.num_frames)
    total = params.num_frames + frames_of(body.seconds, params.fps)
    if num_chunks(total) == edge:
        least = edge * CHUNK_FRAMES - params.num_frames + 1
        raise InvalidRequestError(
            f"got seconds {body.seconds:g}, expected at least {least / params.fps:.2f}: shorter "
            "extensions end within the last chunk, which is already generated",
            param="seconds",
        )
    longer = derived(
        request, request_id, relation="extension", params={"num_frames": total}
    ).without_media()
    return longer if body.prompt is None else longer.with_switch(PromptSwitch(edge, body.prompt))


def fork(
    request: VideoRequest,
    request_id: str,
    *,
    edge: int,
    prompt: str | None,
    seconds: float | None,
) -> VideoRequest:
    """Build a request that continues `request` at chunk `edge`, with another prompt if given.

    Raises InvalidRequestError if there is nothing left of the video and no length is given.
    """
    params = request.params
    frames = params.num_frames
    if seconds is not None:
        frames = edge * CHUNK_FRAMES + frames_of(seconds, params.fps)
    elif edge == num_chunks(frames):
        raise InvalidRequestError(
            "got a finished video without seconds, expected the length of its continuations",
            param="seconds",
        )
    end = num_chunks(frames)
    switches = tuple(switch for switch in params.switches if switch.chunk < end)
    changes: dict[str, Any] = {"num_frames": frames, "switches": switches}
    child = derived(request, request_id, relation="fork", params=changes).without_media()
    if frames != ENDLESS_FRAMES:
        child = msgspec.structs.replace(child, kept_chunks=None)
    return child if prompt is None else child.with_switch(PromptSwitch(edge, prompt))


def continuation(request: VideoRequest, body: ExtendVideo) -> Json:
    """Return the fields of a new video that continues the frames of `request`.

    It is used for videos without a snapshot. All sampling options are kept, except the prompt
    switches.
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
