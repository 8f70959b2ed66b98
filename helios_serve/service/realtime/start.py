"""Conversion of `session.start` to an engine request, as vLLM-Omni interprets its fields."""

from typing import Any

import msgspec

from helios_serve.errors import InvalidRequestError
from helios_serve.options.realtime import RealtimeOptions
from helios_serve.service.media.references import ReferenceInput
from helios_serve.service.protocol import Json
from helios_serve.service.validation import convert
from helios_serve.service.videos.request_builder import RequestBuilder
from helios_serve.size import Size
from helios_serve.video_request import VideoRequest


class SessionOptions(RealtimeOptions, frozen=True, kw_only=True):
    """RealtimeOptions, and the reference image of the session."""

    image_reference: "ImageReference | None" = None


class ImageReference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A reference image: a data: URL, or a URL that the server may fetch."""

    image_url: str


async def session_request(fields: Json, tenant: str, builder: RequestBuilder) -> VideoRequest:
    """Build the request of a session, which has no end if it has no length.

    Raises ApiError or InvalidRequestError for invalid fields.
    """
    fields = flattened(fields)
    own = {name: fields.pop(name) for name in SessionOptions.__struct_fields__ if name in fields}
    options = convert(own, SessionOptions)
    drop_unused(fields, builder)
    if "num_frames" not in fields and "seconds" not in fields:
        fields.setdefault("endless", True)
    given = None
    if options.image_reference is not None:
        source = {"image_url": options.image_reference.image_url}
        given = ReferenceInput(source, "image_reference", "image")
    asked = await builder.make(fields, tenant, given)
    return msgspec.structs.replace(
        asked, max_lead_chunks=options.max_lead_chunks, pacing=options.pacing
    )


def flattened(fields: Json) -> Json:
    """Merge the fields of `sampling_params` and `video_params` into the top level.

    vLLM-Omni accepts fields in all three places; the top level takes precedence.
    """
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
    """Remove fields that vLLM-Omni ignores when another one is set.

    `size` overrides width and height, `num_frames` overrides `seconds`, and models with a pyramid
    have no `num_inference_steps`.
    """
    if "size" in fields:
        fields.pop("width", None)
        fields.pop("height", None)
    if "num_frames" in fields:
        fields.pop("seconds", None)
    models = builder.engine.models
    cores, model = models.cores, fields.get("model", models.default_model)
    model = models.name_of(model) if isinstance(model, str) else ""
    if model in cores and cores[model].model_config.stages > 1:
        fields.pop("num_inference_steps", None)


def config_of(request: VideoRequest) -> dict[str, Any]:
    """Return the accepted options of a request, by their names in `session.start`."""
    params = request.params
    size = request.shown_size or Size(params.width, params.height)
    config: dict[str, Any] = msgspec.to_builtins(params) | size._asdict()
    if params.is_endless:
        config["num_frames"] = None
    return config | {
        "model": request.model,
        "prompt": request.prompt,
        "service_tier": request.tier,
        "max_lead_chunks": request.max_lead_chunks,
        "pacing": request.pacing,
    }
