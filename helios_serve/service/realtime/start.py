"""From `session.start` to the video that it asks for, as vLLM-Omni's clients mean it."""

from typing import Any

import msgspec

from helios_serve.errors import InvalidRequestError
from helios_serve.service.media.references import ReferenceInput
from helios_serve.service.protocol import Json
from helios_serve.service.validation import convert
from helios_serve.service.videos.request_builder import RequestBuilder
from helios_serve.video_request import VideoRequest

MAX_LEAD = 32


class SessionOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The fields that a session has beside those of a video."""

    format: str = "m4s"
    max_lead_chunks: int | None = None
    extra_params: "HeliosParams | None" = None
    image_reference: "ImageReference | None" = None


class HeliosParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What vLLM-Omni's clients say to Helios, under its names."""

    pyramid_num_inference_steps_list: tuple[int, ...] | None = None
    is_amplify_first_chunk: bool = False
    is_enable_stage2: bool | None = None
    pyramid_num_stages: int | None = None


class ImageReference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A data: URL, or one that the server may fetch."""

    image_url: str


async def session_request(
    fields: Json, tenant: str, builder: RequestBuilder, lead: int
) -> VideoRequest:
    """A video that is made only so far ahead of its reader, by `lead` chunks unless told.

    Raises ApiError or InvalidRequestError for what cannot be made.
    """
    fields = flattened(fields)
    own = {name: fields.pop(name) for name in SessionOptions.__struct_fields__ if name in fields}
    options = convert(own, SessionOptions)
    check_options(options)
    extra = options.extra_params or HeliosParams()
    if extra.pyramid_num_inference_steps_list is not None:
        fields["steps"] = list(extra.pyramid_num_inference_steps_list)
    drop_unused(fields, builder)
    given = None
    if options.image_reference is not None:
        source = {"image_url": options.image_reference.image_url}
        given = ReferenceInput(source, "image_reference", "image")
    asked = await builder.make(fields, tenant, given)
    stages = builder.engine.models.cores[asked.model or ""].model_config.stages
    check_stages(extra, stages)
    params = msgspec.structs.replace(
        asked.params,
        amplify_first_chunk=extra.is_amplify_first_chunk,
    )
    asked = msgspec.structs.replace(
        asked, params=params, max_lead_chunks=options.max_lead_chunks or lead
    )
    builder.engine.models.check(asked)
    return asked


def flattened(fields: Json) -> Json:
    """Without the objects in which vLLM-Omni allows fields too; those outside come first."""
    flat = {name: value for name, value in fields.items() if value is not None}
    for name in ("sampling_params", "video_params"):
        inner = flat.pop(name, {})
        if not isinstance(inner, dict):
            raise InvalidRequestError(
                f"got {name} {inner!r}, expected an object of fields", param=name
            )
        flat = {key: value for key, value in inner.items() if value is not None} | flat
    return flat


def drop_unused(fields: Json, builder: RequestBuilder) -> None:
    """Where vLLM-Omni's clients say a thing twice, this is what counts there: size and num_frames;
    and a pyramid has steps of its own."""
    if "size" in fields:
        fields.pop("width", None)
        fields.pop("height", None)
    if "num_frames" in fields:
        fields.pop("seconds", None)
    cores = builder.engine.models.cores
    model = fields.get("model", next(iter(cores)))
    if isinstance(model, str) and model in cores and cores[model].model_config.stages > 1:
        fields.pop("num_inference_steps", None)


def check_options(options: SessionOptions) -> None:
    if options.format != "m4s":
        raise InvalidRequestError(f"got format {options.format!r}, expected m4s", param="format")
    lead = options.max_lead_chunks
    if lead is not None and not 1 <= lead <= MAX_LEAD:
        raise InvalidRequestError(
            f"got max_lead_chunks {lead}, expected 1 to {MAX_LEAD}", param="max_lead_chunks"
        )


def check_stages(extra: HeliosParams, stages: int) -> None:
    """What is said of the model's pyramid has to be true: it cannot be had otherwise."""
    if extra.pyramid_num_stages not in (None, stages):
        raise InvalidRequestError(
            f"got pyramid_num_stages {extra.pyramid_num_stages}, expected the model's {stages}",
            param="extra_params.pyramid_num_stages",
        )
    if extra.is_enable_stage2 not in (None, stages > 1):
        raise InvalidRequestError(
            f"got is_enable_stage2 {extra.is_enable_stage2}, expected {stages > 1}: the model has "
            f"{stages} stages",
            param="extra_params.is_enable_stage2",
        )


def config_of(request: VideoRequest) -> dict[str, Any]:
    """What was accepted, in the words in which it is asked for."""
    params = request.params
    width, height = request.shown_size or (params.width, params.height)
    return {
        "model": request.model,
        "prompt": request.prompt,
        "negative_prompt": params.negative_prompt,
        "width": width,
        "height": height,
        "num_frames": params.num_frames,
        "fps": params.fps,
        "seed": params.seed,
        "steps": params.steps,
        "num_inference_steps": params.num_inference_steps,
        "guidance_scale": params.guidance_scale,
        "transition_chunks": params.transition_chunks,
        "service_tier": request.tier,
        "max_lead_chunks": request.max_lead_chunks,
    }
