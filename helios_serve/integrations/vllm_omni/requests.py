"""From a request of vLLM-Omni to one of ours."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_omni.diffusion.request import OmniDiffusionRequest
from vllm_omni.inputs.data import OmniDiffusionSamplingParams

from helios_serve.errors import InvalidRequestError
from helios_serve.integrations.requests import ForeignRequest
from helios_serve.model_config import HeliosConfig
from helios_serve.options.sampling import SamplingParams

RENAMED = {
    "is_amplify_first_chunk": "amplify_first_chunk",
    "is_skip_first_chunk": "skip_first_chunk",
    "pyramid_num_inference_steps_list": "steps",
}
DECIDED_BY_CHECKPOINT = frozenset(
    {
        "attention_kwargs",
        "history_sizes",
        "is_enable_stage2",
        "keep_first_frame",
        "num_latent_frames_per_chunk",
        "pyramid_num_stages",
        "use_cfg_zero_star",
    }
)
"""What vLLM-Omni's own Helios has to be told, and ours reads."""
ALREADY_USED = frozenset({"duration", "image", "output_type", "stream", "video"})
"""`duration` is in num_frames already; the others are read where they are needed."""
NOT_GIVEN = 1
"""Frames of a request of vLLM-Omni that does not say how many."""
MEDIA = ("image", "video")
HTTP_VIDEOS = ("video_gen", "video_sync-")
"""How the ids of /v1/videos and /v1/videos/sync begin, which take the last output only."""


def foreign_request(
    request: OmniDiffusionRequest, config: HeliosConfig, *, max_lead_chunks: int | None
) -> ForeignRequest:
    """Raises InvalidRequestError for what Helios does not do."""
    sampling, extra = request.sampling_params, dict(request.sampling_params.extra_args or {})
    check_supported(sampling)
    prompt: Mapping[str, Any] = (
        {"prompt": request.prompt} if isinstance(request.prompt, str) else request.prompt
    )
    if not isinstance(prompt.get("prompt"), str):
        raise InvalidRequestError("got no prompt, expected one in words", param="prompt")
    media = prompt.get("multi_modal_data") or {}
    image, video = (media.get(kind, pictures(extra.get(kind), kind)) for kind in MEDIA)
    options = sampling_options(sampling, config)
    options |= extra_options(extra, "image" if video is None else "video")
    if prompt.get("negative_prompt") is not None:
        options["negative_prompt"] = prompt["negative_prompt"]
    return ForeignRequest(
        request_id=request.request_id,
        prompt=prompt["prompt"],
        options=options,
        image=image,
        video=only_path(video),
        lora=None if sampling.lora_request is None else lora_path(sampling.lora_request.lora_path),
        lora_scale=sampling.lora_scale,
        max_lead_chunks=max_lead_chunks,
    )


def check_supported(sampling: OmniDiffusionSamplingParams) -> None:
    count = sampling.num_outputs_per_prompt
    if count != 1:
        raise InvalidRequestError(
            f"got {count} outputs per prompt, expected 1: send as many requests", param="n"
        )
    if sampling.enable_frame_interpolation:
        raise InvalidRequestError(
            "got enable_frame_interpolation, which Helios does not have",
            param="enable_frame_interpolation",
        )
    if sampling.output_type not in (None, "np"):
        raise InvalidRequestError(
            f"got output_type {sampling.output_type!r}, expected 'np'", param="output_type"
        )


def sampling_options(
    sampling: OmniDiffusionSamplingParams, config: HeliosConfig
) -> dict[str, object]:
    """Fields of vLLM-Omni's own; those that are None are left to the checkpoint."""
    options: dict[str, object] = {
        "width": sampling.width,
        "height": sampling.height,
        "num_frames": None if sampling.num_frames == NOT_GIVEN else sampling.num_frames,
        "fps": whole(sampling.fps),
        "seed": sampling.seed if sampling.generator is None else sampling.generator.initial_seed(),
        "guidance_scale": sampling.guidance_scale if sampling.guidance_scale_provided else None,
        "max_sequence_length": sampling.max_sequence_length,
    }
    if config.stages == 1:
        options["num_inference_steps"] = sampling.num_inference_steps
    return options


def extra_options(extra: Mapping[str, Any], medium: str) -> dict[str, object]:
    """Those of `extra_params`: ours, by our names or by those of vLLM-Omni's Helios."""
    options = {
        RENAMED.get(name, name): value
        for name, value in extra.items()
        if name not in DECIDED_BY_CHECKPOINT | ALREADY_USED
    }
    for kind in MEDIA:
        usual = getattr(SamplingParams(), f"{kind}_noise_sigma")
        names = (f"{kind}_noise_sigma_min", f"{kind}_noise_sigma_max")
        if not options.keys().isdisjoint(names):
            bounds = zip(names, usual, strict=True)
            options[f"{kind}_noise_sigma"] = [options.pop(name, value) for name, value in bounds]
        noise = options.pop(f"add_noise_to_{kind}_latents", None)
        if kind == medium and noise is not None:
            options["add_input_noise"] = noise
    return options


def pictures(media: Any, kind: str) -> Any:
    """What a program put among the extra parameters. Clients' JSON may not name files here."""
    parts = media if isinstance(media, list | tuple) else [media]
    if media is not None and not all(hasattr(part, "size") for part in parts):
        raise InvalidRequestError(
            f"got {kind} in extra_params as {type(media).__name__}, expected it as "
            f"{kind}_reference or input_reference",
            param=kind,
        )
    return media


def wants_whole(request: OmniDiffusionRequest, *, is_streaming: bool) -> bool:
    """Whether all frames are to come at once, at the end.

    On a streaming server that is for those who read the last output only; `stream` among the extra
    parameters says otherwise.
    """
    asked = (request.sampling_params.extra_args or {}).get("stream")
    if asked is not None:
        return not asked
    return not is_streaming or request.request_id.startswith(HTTP_VIDEOS)


def lora_path(path: str) -> str:
    if not Path(path).exists():
        raise InvalidRequestError(
            f"got LoRA {path!r}, expected a file or folder on the server", param="lora"
        )
    return path


def only_path(media: Any) -> Any:
    """vLLM-Omni gives uploaded videos as lists of paths, mostly of one."""
    is_path = isinstance(media, list | tuple) and len(media) == 1 and isinstance(media[0], str)
    return media[0] if is_path else media


def whole(number: float | None) -> float | int | None:
    return int(number) if number is not None and number == int(number) else number
