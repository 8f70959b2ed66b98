"""Names that vLLM-Omni's clients use for Helios' options in `extra_params`.

Source: vLLM-Omni 0.30, `diffusion/models/helios/pipeline_helios.py` and its Helios recipe.
"""

from collections.abc import Mapping
from typing import Any

from helios_serve.errors import InvalidRequestError
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
"""Parameters of vLLM-Omni's own Helios pipeline that our engine reads from the checkpoint."""
MEDIA = ("image", "video")
NAMES = (
    *RENAMED,
    *(f"{kind}_noise_sigma_{end}" for kind in MEDIA for end in ("min", "max")),
    *(f"add_noise_to_{kind}_latents" for kind in MEDIA),
)
"""Names in `extra_params` that become options of ours, see `named_as_ours`."""


def renamed(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options by our names, without those that are None.

    Raises InvalidRequestError for an option that has two different values under its two names.
    """
    found: dict[str, Any] = {}
    for name, value in options.items():
        own = RENAMED.get(name, name)
        if value is None:
            continue
        if found.setdefault(own, value) != value:
            raise InvalidRequestError(
                f"got two values for {own}, {found[own]!r} and {value!r}: send only one of them",
                param=own,
            )
    return found


def named_as_ours(extra: Mapping[str, Any], medium: str | None = None) -> dict[str, Any]:
    """Return `extra_params` by our names, without those that the checkpoint decides.

    `add_noise_to_image_latents` and `add_noise_to_video_latents` count for a request with a
    reference of that kind; with `medium` None, either of them counts. Unknown names are kept.
    Raises InvalidRequestError as `renamed` does.
    """
    options = renamed(
        {name: value for name, value in extra.items() if name not in DECIDED_BY_CHECKPOINT}
    )
    for kind in MEDIA:
        default = getattr(SamplingParams(), f"{kind}_noise_sigma")
        names = (f"{kind}_noise_sigma_min", f"{kind}_noise_sigma_max")
        if not options.keys().isdisjoint(names):
            bounds = zip(names, default, strict=True)
            options[f"{kind}_noise_sigma"] = [options.pop(name, value) for name, value in bounds]
        noise = options.pop(f"add_noise_to_{kind}_latents", None)
        if medium in (None, kind) and noise is not None:
            options["add_input_noise"] = noise
    return options


def check_pyramid(extra: Mapping[str, Any], stages: int) -> None:
    """Raise InvalidRequestError unless `extra_params` match the model's pyramid, which is fixed."""
    expected = {"pyramid_num_stages": stages, "is_enable_stage2": stages > 1}
    for name, value in expected.items():
        if extra.get(name) not in (None, value):
            raise InvalidRequestError(
                f"got {name} {extra[name]!r}, expected {value}: the model has {stages} stages",
                param=f"extra_params.{name}",
            )
