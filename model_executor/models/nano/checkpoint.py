"""The built-in checkpoints: the Helios architecture at about 1/10,000 of its size.

nano, nano-mid and nano-base were trained on a small world of shapes (docs/nano.md), and the package
holds their weights. nano-random has random but reproducible weights. A checkpoint is written to the
cache folder on first use and loaded like any other checkpoint, so that tests exercise the real
code.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from helios_serve import __version__
from helios_serve.errors import CheckpointError
from helios_serve.model_executor.components import Part, build_parts
from helios_serve.model_executor.models.architectures import (
    TEXT_ENCODER_FILE,
    nano_files,
    nano_variant,
)
from helios_serve.model_executor.models.helios.config import read_config
from helios_serve.model_executor.models.nano.tokenizer import build_tokenizer, save_tokenizer
from helios_serve.model_executor.models.nano.vocabulary import trained_tokenizer
from helios_serve.model_executor.models.published import write_json
from helios_serve.model_executor.weights import STEMS, random_tensor
from helios_serve.options.workers import RANDOM_MODEL

WEIGHTS = Path(__file__).parent / "weights"
"""The weights of the trained models: a file each, and one of the VAE, which they share."""
VAE_WEIGHTS = "vae"


def nano_checkpoint(model: str) -> Path | None:
    """Return the folder of a built-in checkpoint, written on first use; None for other models.

    Raises CheckpointError for an unknown variant of nano, or if the package lacks its weights.
    """
    if nano_variant(model) is None:
        return None
    folder = cache_folder() / f"{model}-{content_digest(model)}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=folder.parent))
        try:
            write_nano(scratch, model)
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


def content_digest(model: str) -> str:
    """Return a name for the content of a checkpoint: another version of it has another folder."""
    words = nano_tokenizer(model).backend_tokenizer.to_str()
    digest = hashlib.sha256(json.dumps([__version__, nano_files(model), words]).encode())
    for path in weight_files(model):
        try:
            digest.update(path.read_bytes())
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: install the package anew") from error
    return digest.hexdigest()[:12]


def weight_files(model: str) -> list[Path]:
    """Return the files that hold a built-in model's weights; none for random weights."""
    if model == RANDOM_MODEL:
        return []
    return [WEIGHTS / f"{name}.safetensors" for name in (model, VAE_WEIGHTS)]


def nano_tokenizer(model: str) -> PreTrainedTokenizerFast:
    return build_tokenizer() if model == RANDOM_MODEL else trained_tokenizer()


def write_nano(folder: Path, model: str) -> None:
    """Write the checkpoint of a built-in model: the same bytes each time."""
    vocab_size = save_tokenizer(nano_tokenizer(model), folder / "tokenizer")
    files = nano_files(model)
    files[TEXT_ENCODER_FILE] |= {"vocab_size": vocab_size}
    for name, content in files.items():
        write_json(folder, name, content)
    parts = build_parts(folder, read_config(folder), torch.float32)
    if model == RANDOM_MODEL:
        tensors = {
            name: random_weights(part, seed) for seed, (name, part) in enumerate(parts.items())
        }
    else:
        tensors = packaged_weights(model)
    for name, part in parts.items():
        write_weights(part.component.folder, tensors[name])


def random_weights(part: Part, seed: int) -> dict[str, Tensor]:
    """Return random tensors for a component, in float32."""
    module, component = part
    generator = torch.Generator().manual_seed(seed)
    return {
        name: random_tensor(
            name, component.stored_shape(name, tuple(meta.shape)), torch.float32, generator
        )
        for name, meta in module.state_dict().items()
        if name not in component.optional
    }


def packaged_weights(model: str) -> dict[str, dict[str, Tensor]]:
    """Return the weights of a trained model by component. Raises CheckpointError."""
    found: dict[str, dict[str, Tensor]] = {}
    for path in weight_files(model):
        try:
            stored = load_file(path)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{path} cannot be read: install the package anew: {error}"
            ) from error
        for key, tensor in stored.items():
            component, name = key.split(".", maxsplit=1)
            found.setdefault(component, {})[name] = tensor
    return found


def write_weights(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write the weights of a component under the name that its library gives the file."""
    stem = STEMS[folder.name == "text_encoder"]
    save_file(dict(tensors), folder / f"{stem}.safetensors", metadata={"format": "pt"})
