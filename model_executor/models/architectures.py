"""Configurations of the published and the built-in checkpoints. Importing them needs no torch."""

from pathlib import Path
from typing import Any, NamedTuple

from helios_serve.errors import CheckpointError
from helios_serve.model_config import LATENT_CHANNELS, HeliosConfig, Variant
from helios_serve.model_executor.models.helios.config import (
    MODEL_INDEX,
    SCHEDULER,
    VAE,
    parse_config,
    read_config,
)
from helios_serve.model_executor.models.helios.config import TRANSFORMER as TRANSFORMER_FILE
from helios_serve.options.workers import DEFAULT_MODEL, RANDOM_MODEL

PUBLISHED: dict[str, Variant] = {
    "BestWishYsh/Helios-Base": "base",
    "BestWishYsh/Helios-Mid": "mid",
    "BestWishYsh/Helios-Distilled": "distilled",
}
"""Hub ids of the published checkpoints."""

TRANSFORMER = {
    "_class_name": "HeliosTransformer3DModel",
    "num_layers": 40,
    "num_attention_heads": 40,
    "attention_head_dim": 128,
    "ffn_dim": 13824,
    "text_dim": 4096,
    "freq_dim": 256,
    "rope_dim": [44, 42, 42],
    "rope_theta": 10000.0,
    "eps": 1e-6,
}

UMT5_XXL = {
    "architectures": ["UMT5EncoderModel"],
    "model_type": "umt5",
    "vocab_size": 256384,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
    "dropout_rate": 0.0,
}

WAN_VAE = {"_class_name": "AutoencoderKLWan"}
"""The defaults of the class are the published configuration."""


def model_index(variant: Variant) -> dict[str, Any]:
    """Return the content of `model_index.json` for a variant."""
    base = variant == "base"
    flags = {"is_cfg_zero_star": variant == "mid", "is_distilled": variant == "distilled"}
    dmd = variant == "distilled"
    return {
        "_class_name": "HeliosPipeline" if base else "HeliosPyramidPipeline",
        # SGLang takes a folder for a diffusion model by this key.
        "_diffusers_version": "0.37.0",
        **({} if base else flags),
        "scheduler": ["diffusers", "HeliosDMDScheduler" if dmd else "HeliosScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "AutoTokenizer"],
        "transformer": ["diffusers", "HeliosTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLWan"],
    }


def scheduler_config(variant: Variant) -> dict[str, Any]:
    """Return the content of `scheduler_config.json` for a variant, as published."""
    stages = 1 if variant == "base" else 3
    common = {
        "num_train_timesteps": 1000,
        "shift": 1.0,
        "stages": stages,
        "stage_range": [stage / stages for stage in range(stages + 1)],
        "gamma": 1 / 3,
        "use_flow_sigmas": True,
        "use_dynamic_shifting": True,
        "prediction_type": "flow_prediction",
    }
    if variant == "distilled":
        return common | {"_class_name": "HeliosDMDScheduler", "time_shift_type": "linear"}
    return common | {
        "_class_name": "HeliosScheduler",
        "scheduler_type": "unipc",
        "time_shift_type": "exponential",
    }


TEXT_ENCODER_FILE = "text_encoder/config.json"

NANO: dict[str, Variant] = {
    "nano": "distilled",
    "nano-mid": "mid",
    "nano-base": "base",
    RANDOM_MODEL: "distilled",
}
"""Built-in models and their variants: the same architecture at about 1/10,000 of its size."""


class Widths(NamedTuple):
    """The numbers in which a built-in model's JSON files differ from the published ones."""

    transformer: dict[str, Any]
    text: dict[str, Any]
    vae: dict[str, Any]


TRAINED_WIDTHS = Widths(
    transformer={
        "num_layers": 4,
        "num_attention_heads": 4,
        "attention_head_dim": 32,
        "ffn_dim": 512,
        "text_dim": 64,
        "rope_dim": [12, 10, 10],
    },
    text={"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4},
    vae={"base_dim": 8, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 1},
)
"""Widths of the built-in models that were trained, and of new trainings."""
RANDOM_WIDTHS = Widths(
    transformer=TRAINED_WIDTHS.transformer | {"num_layers": 3, "ffn_dim": 256},
    text=TRAINED_WIDTHS.text,
    vae=TRAINED_WIDTHS.vae | {"dim_mult": [1, 2, 2, 2]},
)
UNIT_LATENTS = {"latents_mean": [0.0] * LATENT_CHANNELS, "latents_std": [1.0] * LATENT_CHANNELS}
"""The scale of latents in the VAE's JSON file where they need none."""


def published_files(variant: Variant) -> dict[str, dict[str, Any]]:
    """Return the JSON files of a published checkpoint by name."""
    return {
        MODEL_INDEX: model_index(variant),
        SCHEDULER: scheduler_config(variant),
        TRANSFORMER_FILE: TRANSFORMER,
        TEXT_ENCODER_FILE: UMT5_XXL,
        VAE: WAN_VAE,
    }


def trained_files(variant: Variant, widths: Widths = TRAINED_WIDTHS) -> dict[str, dict[str, Any]]:
    """Return the JSON files of a trained checkpoint by name, without its vocabulary's size."""
    files = small_files(variant, widths)
    return files | {VAE: files[VAE] | UNIT_LATENTS}


def small_files(variant: Variant, widths: Widths) -> dict[str, dict[str, Any]]:
    """Return the JSON files of a checkpoint with other widths than the published ones."""
    return published_files(variant) | {
        TRANSFORMER_FILE: TRANSFORMER | widths.transformer,
        TEXT_ENCODER_FILE: UMT5_XXL | widths.text,
        VAE: WAN_VAE | widths.vae,
    }


def nano_files(model: str) -> dict[str, dict[str, Any]]:
    """Return the JSON files of a built-in model by name, without its vocabulary's size."""
    if model == RANDOM_MODEL:
        return small_files(NANO[model], RANDOM_WIDTHS)
    return trained_files(NANO[model])


def nano_variant(model: str) -> Variant | None:
    """Return the variant of a built-in model; None for other models.

    Raises CheckpointError for an unknown variant of nano.
    """
    if model.split("-")[0] != DEFAULT_MODEL or Path(model).is_dir():
        return None
    if (variant := NANO.get(model)) is None:
        raise CheckpointError(f"got model {model!r}, expected one of {', '.join(NANO)}")
    return variant


def known_config(model: str) -> HeliosConfig | None:
    """Return the configuration of a folder, a built-in or a published model; None for others.

    Nothing is downloaded. Raises CheckpointError for a folder without a valid checkpoint.
    """
    if nano_variant(model) is not None:
        return parse_config(nano_files(model))
    if (folder := Path(model).expanduser()).is_dir():
        return read_config(folder)
    variant = PUBLISHED.get(model)
    return None if variant is None else parse_config(published_files(variant))
