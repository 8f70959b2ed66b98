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
from helios_serve.model_config import Variant
from helios_serve.model_executor.components import build_parts
from helios_serve.model_executor.models.architectures import (
    TEXT_ENCODER_FILE,
    TEXT_WIDTHS,
    VAE_WIDTHS,
    WIDTHS,
    nano_files,
    nano_variant,
)
from helios_serve.model_executor.models.helios.config import read_config
from helios_serve.model_executor.models.nano.tokenizer import save_tokenizer
from helios_serve.model_executor.models.published import write_json
from helios_serve.model_executor.weights import STEMS, random_tensor


def nano_checkpoint(model: str) -> Path | None:
    """Return the folder of a nano checkpoint, written on first use; None for other models.

    Raises CheckpointError for an unknown variant of nano.
    """
    if (variant := nano_variant(model)) is None:
        return None
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
    files = nano_files(variant)
    files[TEXT_ENCODER_FILE] |= {"vocab_size": vocab_size}
    for name, content in files.items():
        write_json(folder, name, content)
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
