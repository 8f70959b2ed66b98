"""Configurations of the published checkpoints, for benchmarks with random weights."""

import atexit
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from helios_serve.model_config import Variant
from helios_serve.model_executor.models.nano.tokenizer import save_tokenizer

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


def write_json(folder: Path, name: str, content: dict[str, Any]) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


def scratch_folder() -> Path:
    """Create a temporary folder, which is deleted when this process exits."""
    path = tempfile.mkdtemp(prefix="helios-serve-")
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return Path(path)


@cache
def published_checkpoint(model: str) -> Path | None:
    """Return a folder with the JSON files of a published checkpoint; None for other models."""
    if (variant := PUBLISHED.get(model)) is None:
        return None
    folder = scratch_folder()
    write_json(folder, "model_index.json", model_index(variant))
    write_json(folder, "scheduler/scheduler_config.json", scheduler_config(variant))
    write_json(folder, "transformer/config.json", TRANSFORMER)
    write_json(folder, "text_encoder/config.json", UMT5_XXL)
    write_json(folder, "vae/config.json", WAN_VAE)
    save_tokenizer(folder / "tokenizer")
    return folder
