"""The request bodies that different servers expect."""

from typing import Any

import msgspec

from helios_serve.benchmarks.load.references import reference_of
from helios_serve.benchmarks.load.request import SessionRequest
from helios_serve.errors import InvalidRequestError
from helios_serve.options.benchmarks import Backend, TargetOptions

VIDEOS = "/v1/videos"
MULTIPART = ("vllm-omni",)
"""Backends that take forms only."""


def body_of(request: SessionRequest, options: TargetOptions) -> dict[str, Any]:
    """Return the fields of a request. Raises InvalidRequestError if the server has none for it."""
    fields = FIELDS[options.backend](request)
    if options.model is not None:
        fields["model"] = options.model
    return fields | extra_body(options)


def extra_body(options: TargetOptions) -> dict[str, Any]:
    if options.extra_body is None:
        return {}
    try:
        return msgspec.json.decode(options.extra_body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"--extra-body: {error}", param="extra_body") from error


def helios(request: SessionRequest) -> dict[str, Any]:
    """helios-serve: JSON with all sampling options by name."""
    fields = given(
        prompt=request.prompt,
        width=request.width,
        height=request.height,
        num_frames=request.num_frames,
        fps=request.fps,
        steps=request.steps,
        seed=request.seed,
        service_tier=request.tier,
    )
    reference = reference_of(request)
    return fields if reference is None else fields | {"input_reference": reference}


def vllm_omni(request: SessionRequest) -> dict[str, Any]:
    """vLLM-Omni: a form for videos; steps of the stages go into `extra_params`.

    Its step execution refuses requests without `num_inference_steps`.
    """
    only_text(request, "vllm-omni")
    fields = sized(request)
    if request.steps is not None:
        fields["num_inference_steps"] = sum(request.steps)
        fields["extra_params"] = {
            "is_enable_stage2": len(request.steps) > 1,
            "pyramid_num_inference_steps_list": list(request.steps),
        }
    return fields


def sglang(request: SessionRequest) -> dict[str, Any]:
    """SGLang: JSON."""
    only_text(request, "sglang")
    fields = sized(request)
    if request.steps is not None:
        fields["pyramid_num_inference_steps_list"] = list(request.steps)
    return fields


def openai_videos(request: SessionRequest) -> dict[str, Any]:
    """The fields of OpenAI's API alone: length in seconds."""
    only_text(request, "openai-videos")
    return given(
        prompt=request.prompt,
        size=size_of(request),
        seconds=f"{request.num_frames / request.fps:g}",
    )


def sized(request: SessionRequest) -> dict[str, Any]:
    return given(
        prompt=request.prompt,
        size=size_of(request),
        num_frames=request.num_frames,
        fps=request.fps,
        seed=request.seed,
    )


def size_of(request: SessionRequest) -> str | None:
    has_size = request.width is not None and request.height is not None
    return f"{request.width}x{request.height}" if has_size else None


def only_text(request: SessionRequest, backend: Backend) -> None:
    if request.task != "t2v" or request.image or request.video:
        raise InvalidRequestError(
            f"got task {request.task} with --backend {backend}, expected t2v: "
            "this benchmark cannot send references to it",
            param="task",
        )


def given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


FIELDS = {
    "helios": helios,
    "vllm-omni": vllm_omni,
    "sglang": sglang,
    "openai-videos": openai_videos,
}
