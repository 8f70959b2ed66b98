"""Conversion of vLLM-Omni's requests to ours."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_omni.diffusion.request import OmniDiffusionRequest
from vllm_omni.inputs.data import OmniDiffusionSamplingParams

from helios_serve.errors import InvalidRequestError
from helios_serve.integrations.requests import ForeignRequest
from helios_serve.model_config import HeliosConfig
from helios_serve.options.vllm_omni import MEDIA, named_as_ours

ALREADY_USED = frozenset({"duration", "image", "output_type", "stream", "video"})
"""Parameters that are handled elsewhere. `duration` is already part of num_frames."""
DEFAULT_NUM_FRAMES = 1
"""vLLM-Omni's number of frames of a request that does not set it."""
HTTP_VIDEOS = ("video_gen", "video_sync-")
"""Prefixes of the request ids of /v1/videos and /v1/videos/sync, which use only the last output."""


def foreign_request(
    request: OmniDiffusionRequest, config: HeliosConfig, *, max_lead_chunks: int | None
) -> ForeignRequest:
    """Convert a request. Raises InvalidRequestError for options that Helios does not support."""
    sampling, extra = request.sampling_params, dict(request.sampling_params.extra_args or {})
    check_supported(sampling)
    prompt: Mapping[str, Any] = (
        {"prompt": request.prompt} if isinstance(request.prompt, str) else request.prompt
    )
    if not isinstance(prompt.get("prompt"), str):
        raise InvalidRequestError("missing prompt, expected text", param="prompt")
    media = prompt.get("multi_modal_data") or {}
    image, video = (media.get(kind, check_media(extra.get(kind), kind)) for kind in MEDIA)
    options = sampling_options(sampling, config)
    options |= extra_options(extra, "image" if video is None else "video")
    if prompt.get("negative_prompt") is not None:
        options["negative_prompt"] = prompt["negative_prompt"]
    return ForeignRequest(
        request_id=request.request_id,
        prompt=prompt["prompt"],
        options=options,
        image=image,
        video=single_path(video),
        lora=None if sampling.lora_request is None else lora_path(sampling.lora_request.lora_path),
        lora_scale=sampling.lora_scale,
        max_lead_chunks=max_lead_chunks,
    )


def check_supported(sampling: OmniDiffusionSamplingParams) -> None:
    """Raise InvalidRequestError for options that Helios does not support."""
    count = sampling.num_outputs_per_prompt
    if count != 1:
        raise InvalidRequestError(
            f"got {count} outputs per prompt, expected 1: send one request per video", param="n"
        )
    if sampling.enable_frame_interpolation:
        raise InvalidRequestError(
            "unsupported option enable_frame_interpolation: Helios has no such option",
            param="enable_frame_interpolation",
        )
    if sampling.output_type not in (None, "np"):
        raise InvalidRequestError(
            f"got output_type {sampling.output_type!r}, expected 'np'", param="output_type"
        )


def sampling_options(
    sampling: OmniDiffusionSamplingParams, config: HeliosConfig
) -> dict[str, object]:
    """Return the options in vLLM-Omni's own fields. None keeps the checkpoint's default."""
    options: dict[str, object] = {
        "width": sampling.width,
        "height": sampling.height,
        "num_frames": None if sampling.num_frames == DEFAULT_NUM_FRAMES else sampling.num_frames,
        "fps": as_integer(sampling.fps),
        "seed": sampling.seed if sampling.generator is None else sampling.generator.initial_seed(),
        "guidance_scale": sampling.guidance_scale if sampling.guidance_scale_provided else None,
        "max_sequence_length": sampling.max_sequence_length,
    }
    if config.stages == 1:
        options["num_inference_steps"] = sampling.num_inference_steps
    return options


def extra_options(extra: Mapping[str, Any], medium: str) -> dict[str, object]:
    """Return the options in `extra_params`, by our names or those of vLLM-Omni's Helios."""
    return named_as_ours(
        {name: value for name, value in extra.items() if name not in ALREADY_USED}, medium
    )


def check_media(media: Any, kind: str) -> Any:
    """Return images that a program passed in `extra_params`.

    Raises InvalidRequestError for anything else: clients' JSON must not name files of the server.
    """
    parts = media if isinstance(media, list | tuple) else [media]
    if media is not None and not all(hasattr(part, "size") for part in parts):
        raise InvalidRequestError(
            f"got {kind} in extra_params of type {type(media).__name__}, expected "
            f"{kind}_reference or input_reference",
            param=kind,
        )
    return media


def wants_single_output(request: OmniDiffusionRequest, *, is_streaming: bool) -> bool:
    """Return whether all frames are returned at once, at the end.

    On a streaming server, this is for clients that read only the last output. The extra parameter
    `stream` overrides it.
    """
    stream = (request.sampling_params.extra_args or {}).get("stream")
    if stream is not None:
        return not stream
    return not is_streaming or request.request_id.startswith(HTTP_VIDEOS)


def lora_path(path: str) -> str:
    """Return the path. Raises InvalidRequestError if it does not exist."""
    if not Path(path).exists():
        raise InvalidRequestError(
            f"LoRA {path!r} not found, expected a file or folder on the server", param="lora"
        )
    return path


def single_path(media: Any) -> Any:
    """Return the path in a list of one. vLLM-Omni passes uploaded videos as lists of paths."""
    is_path = isinstance(media, list | tuple) and len(media) == 1 and isinstance(media[0], str)
    return media[0] if is_path else media


def as_integer(number: float | None) -> float | int | None:
    """Return a whole float as an int; other values are returned unchanged."""
    return int(number) if number is not None and number == int(number) else number
