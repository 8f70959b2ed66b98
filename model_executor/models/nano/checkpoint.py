"""The nano checkpoints: the Helios architecture at about 1/10,000 of its size.

Weights are random but reproducible, so the videos show noise. A checkpoint is written to the cache
folder on first use and loaded like any other checkpoint, so that tests exercise the real code.
"""

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from helios_serve import __version__
from helios_serve.errors import CheckpointError
from helios_serve.model_config import Variant
from helios_serve.model_executor.components import build_parts
from helios_serve.model_executor.models.helios.config import read_config
from helios_serve.model_executor.models.nano.tokenizer import save_tokenizer
from helios_serve.model_executor.models.published import (
    TRANSFORMER,
    UMT5_XXL,
    WAN_VAE,
    model_index,
    scheduler_config,
    write_json,
)
from helios_serve.model_executor.weights import STEMS, random_tensor

NANO: dict[str, Variant] = {"nano": "distilled", "nano-mid": "mid", "nano-base": "base"}
"""Model names and their variants."""

WIDTHS = {
    "num_layers": 3,
    "num_attention_heads": 4,
    "attention_head_dim": 32,
    "ffn_dim": 256,
    "text_dim": 64,
    "rope_dim": [12, 10, 10],
}
TEXT_WIDTHS = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
VAE_WIDTHS = {"base_dim": 8, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1}


def nano_checkpoint(model: str) -> Path | None:
    """Return the folder of a nano checkpoint, written on first use; None for other models.

    Raises CheckpointError for an unknown variant of nano.
    """
    if model.split("-")[0] != "nano" or Path(model).is_dir():
        return None
    if (variant := NANO.get(model)) is None:
        raise CheckpointError(f"got model {model!r}, expected one of {', '.join(NANO)}")
    recipe = json.dumps([__version__, WIDTHS, TEXT_WIDTHS, VAE_WIDTHS])
    folder = cache_folder() / f"{model}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=folder.parent))
        try:
            write_nano(scratch, variant)
            scratch.rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process wrote the same content first
                raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return folder


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "helios-serve"


def write_nano(folder: Path, variant: Variant) -> None:
    """Write a checkpoint. All three variants have the same weights."""
    vocab_size = save_tokenizer(folder / "tokenizer")
    write_json(folder, "model_index.json", model_index(variant))
    write_json(folder, "scheduler/scheduler_config.json", scheduler_config(variant))
    write_json(folder, "transformer/config.json", TRANSFORMER | WIDTHS)
    write_json(
        folder, "text_encoder/config.json", UMT5_XXL | TEXT_WIDTHS | {"vocab_size": vocab_size}
    )
    write_json(folder, "vae/config.json", WAN_VAE | VAE_WIDTHS)
    parts = build_parts(folder, read_config(folder), torch.float32)
    for seed, (module, component) in enumerate(parts.values()):
        generator = torch.Generator().manual_seed(seed)
        tensors = {
            name: random_tensor(
                name,
                component.stored_shape(name, tuple(meta.shape)),
                torch.float32,
                generator,
            )
            for name, meta in module.state_dict().items()
            if name not in component.optional
        }
        stem = STEMS[component.folder.name == "text_encoder"]
        save_file(tensors, component.folder / f"{stem}.safetensors", metadata={"format": "pt"})
