"""Reads a checkpoint's JSON files and rejects configurations that the code does not support."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from helios_serve.errors import CheckpointError
from helios_serve.model_config import (
    LATENT_CHANNELS,
    LATENT_STRIDE,
    HeliosConfig,
    SamplerConfig,
    TransformerConfig,
    Variant,
)

T = TypeVar("T")

MODEL_INDEX = "model_index.json"
TRANSFORMER = "transformer/config.json"
SCHEDULER = "scheduler/scheduler_config.json"
VAE = "vae/config.json"

PIPELINES = ("HeliosPipeline", "HeliosPyramidPipeline")
SCHEDULERS = ("HeliosScheduler", "HeliosDMDScheduler")
MAX_GAMMA = 1 / 3 + 1e-9
"""Above it the covariance of a 2 x 2 patch's block noise is not positive semidefinite."""

# Assumptions of the code: the supported values of each key. The first is the default.
ASSUMED: dict[str, dict[str, tuple[Any, ...]]] = {
    TRANSFORMER: {
        "_class_name": ("HeliosTransformer3DModel",),
        "patch_size": ([1, 2, 2],),
        "in_channels": (LATENT_CHANNELS,),
        "out_channels": (LATENT_CHANNELS, None),
        "cross_attn_norm": (True,),
        "qk_norm": ("rms_norm_across_heads",),
        "added_kv_proj_dim": (None,),
        "guidance_cross_attn": (True,),
        "zero_history_timestep": (True,),
        "has_multi_term_memory_patch": (True,),
        "history_scale_mode": ("per_head", "scalar"),
    },
    SCHEDULER: {
        "_class_name": SCHEDULERS,
        "prediction_type": ("flow_prediction",),
        "use_flow_sigmas": (True,),
        "time_shift_type": ("exponential", "linear"),
    },
    VAE: {
        "_class_name": ("AutoencoderKLWan",),
        "z_dim": (LATENT_CHANNELS,),
        "scale_factor_spatial": (LATENT_STRIDE,),
        "scale_factor_temporal": (4,),
        "is_residual": (False,),
        "patch_size": (None,),
        "out_channels": (3,),
    },
}


# Supported values of the keys that only HeliosScheduler reads.
SOLVER: dict[str, tuple[Any, ...]] = {
    "predict_x0": (True,),
    "thresholding": (False,),
    "solver_p": (None,),
    "solver_type": ("bh2", "bh1"),
    "solver_order": (2, 1),
    "scheduler_type": ("unipc", "euler"),
}


def read_config(folder: Path) -> HeliosConfig:
    """Read the configuration of the checkpoint in `folder`.

    Raises CheckpointError for missing or invalid files and unsupported values.
    """
    index = read_json(folder, MODEL_INDEX)
    require(MODEL_INDEX, index, "_class_name", PIPELINES)
    return parse_config({MODEL_INDEX: index} | {name: read_json(folder, name) for name in ASSUMED})


def parse_config(files: Mapping[str, dict[str, Any]]) -> HeliosConfig:
    """Return the configuration in the JSON files of a checkpoint, which `files` has by name.

    Raises CheckpointError for unsupported values.
    """
    index = files[MODEL_INDEX]
    for name, allowed in ASSUMED.items():
        for key, values in allowed.items():
            require(name, {key: values[0]} | files[name], key, values)
    scheduler = files[SCHEDULER]
    if scheduler["_class_name"] == "HeliosDMDScheduler":
        scheduler = {"solver": "dmd"} | {k: v for k, v in scheduler.items() if k not in SOLVER}
    else:
        for key, values in SOLVER.items():
            require(SCHEDULER, {key: values[0]} | scheduler, key, values)
        scheduler = {"solver": scheduler.get("scheduler_type", "unipc")} | scheduler
    config = HeliosConfig(
        variant=variant_of(index),
        transformer=convert(TRANSFORMER, files[TRANSFORMER], TransformerConfig),
        scheduler=convert(SCHEDULER, scheduler, SamplerConfig),
        cfg_zero_star=bool(index.get("is_cfg_zero_star", False)),
    )
    check_consistency(config, index)
    return config


def variant_of(index: dict[str, Any]) -> Variant:
    if index["_class_name"] == "HeliosPipeline":
        return "base"
    return "distilled" if index.get("is_distilled") else "mid"


def check_consistency(config: HeliosConfig, index: dict[str, Any]) -> None:
    """Raise CheckpointError for values that are valid by themselves but contradict each other."""
    scheduler, transformer = config.scheduler, config.transformer
    pipeline = index["_class_name"]
    stages = 1 if config.variant == "base" else scheduler.stages
    if scheduler.stages != stages or (config.variant != "base" and stages < 2):
        expected = "1 stage" if config.variant == "base" else "2 or more stages"
        fail(SCHEDULER, "stages", scheduler.stages, f"{expected} for a {pipeline}")
    if (scheduler.solver == "dmd") != (config.variant == "distilled"):
        expected = SCHEDULERS[config.variant == "distilled"]
        fail(SCHEDULER, "_class_name", scheduler.solver, f"{expected} for {config.variant}")
    if len(scheduler.stage_range) != scheduler.stages + 1:
        got = list(scheduler.stage_range)
        fail(SCHEDULER, "stage_range", got, f"{scheduler.stages + 1} numbers")
    if not 0 < scheduler.gamma <= MAX_GAMMA:
        fail(SCHEDULER, "gamma", scheduler.gamma, "above 0 and at most 1/3")
    if scheduler.use_dynamic_shifting and scheduler.shift != 1:
        fail(SCHEDULER, "shift", scheduler.shift, "1.0 with use_dynamic_shifting")
    if sum(transformer.rope_dim) != transformer.attention_head_dim or any(
        dim % 2 for dim in transformer.rope_dim
    ):
        got = list(transformer.rope_dim)
        expected = f"three even numbers that add up to {transformer.attention_head_dim}"
        fail(TRANSFORMER, "rope_dim", got, expected)


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """Read a JSON object from a file of the checkpoint. Raises CheckpointError."""
    path = folder / name
    if not path.is_file():
        raise CheckpointError(f"{folder} is not a Helios checkpoint: it has no {name}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: got {type(content).__name__}, expected an object")
    return content


def convert(name: str, content: dict[str, Any], kind: type[T]) -> T:
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{name}: {error}") from error


def require(name: str, content: dict[str, Any], key: str, allowed: tuple[Any, ...]) -> None:
    if content.get(key) not in allowed:
        expected = " or ".join(json.dumps(value) for value in allowed)
        fail(name, key, content.get(key), expected)


def fail(name: str, key: str, got: object, expected: str) -> None:
    raise CheckpointError(f"{name}: {key}: got {json.dumps(got)}, expected {expected}")
