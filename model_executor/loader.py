"""From the name of a model to its parts on a device."""

from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers import AutoTokenizer

from helios_serve.errors import CheckpointError
from helios_serve.logger import logger
from helios_serve.model_config import HeliosConfig
from helios_serve.model_executor.components import build_parts, tie_embeddings
from helios_serve.model_executor.models.helios.config import read_config
from helios_serve.model_executor.models.helios.transformer import HeliosTransformer
from helios_serve.model_executor.models.nano.checkpoint import nano_checkpoint
from helios_serve.model_executor.models.published import published_checkpoint
from helios_serve.model_executor.models.text_encoder import TextEncoder
from helios_serve.model_executor.models.vae import Vae
from helios_serve.model_executor.weights import fill_random, find_sources, stream_weights

LoadFormat = Literal["auto", "dummy"]

HUB_PATTERNS = ["*.json", "*.safetensors", "spiece.model", "tokenizer/*"]
HUB_IGNORED = ["transformer_ode/*"]


class Checkpoint(NamedTuple):
    """A checkpoint whose json files were read. `note` says what a user must know of its weights."""

    name: str
    folder: Path
    config: HeliosConfig
    load_format: LoadFormat
    note: str | None


class LoadedModel(NamedTuple):
    """A checkpoint ready to run."""

    config: HeliosConfig
    transformer: HeliosTransformer
    text_encoder: TextEncoder
    vae: Vae
    device: torch.device


def open_checkpoint(model: str, load_format: LoadFormat) -> Checkpoint:
    """Find `model` and read its configuration; raises CheckpointError.

    With `load_format="dummy"` weights are random and only the json files are needed, or none for
    a published hub id.
    """
    folder, note = find_checkpoint(model, load_format)
    return Checkpoint(model, folder, read_config(folder), load_format, note)


def load_checkpoint(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype
) -> LoadedModel:
    """Load the weights; every file is checked before the first of them is read."""
    if checkpoint.note is not None:
        logger.warning(checkpoint.note)
    folder, config = checkpoint.folder, checkpoint.config
    dummy = checkpoint.load_format == "dummy"
    parts = build_parts(folder, config, dtype)
    sources = {} if dummy else {name: find_sources(*part) for name, part in parts.items()}
    tokenizer = load_tokenizer(folder)
    for seed, (name, (module, component)) in enumerate(parts.items()):
        if dummy:
            fill_random(module, component, device, seed)
        else:
            stream_weights(module, component, sources[name], device)
        module.eval().requires_grad_(False)
    transformer, text_encoder, vae = (part.module for part in parts.values())
    assert isinstance(transformer, HeliosTransformer)
    tie_embeddings(text_encoder)
    return LoadedModel(
        config,
        transformer,
        TextEncoder(text_encoder, tokenizer),
        Vae(vae),
        device,
    )


def find_checkpoint(model: str, load_format: LoadFormat) -> tuple[Path, str | None]:
    """The folder of `model`, and a note where its weights are not real."""
    if (nano := nano_checkpoint(model)) is not None:
        return nano, f"{model} has random weights: it shows the machinery, not pictures"
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder, "weights are random (dummy)" if load_format == "dummy" else None
    if load_format == "dummy":
        if (published := published_checkpoint(model)) is not None:
            return published, f"{model} with random weights (dummy): for measuring speed only"
        return download(model, ["*.json", "tokenizer/*"]), "weights are random (dummy)"
    return download(model, HUB_PATTERNS), None


def download(model: str, patterns: list[str]) -> Path:
    """The local snapshot of a hub repository."""
    try:
        return Path(snapshot_download(model, allow_patterns=patterns, ignore_patterns=HUB_IGNORED))
    except HFValidationError as error:
        raise CheckpointError(
            f"got model {model!r}, expected a folder, a hub id such as OWNER/NAME, "
            "or nano, nano-mid, nano-base"
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{model} is no local folder and could not be had from the hub: {reason}"
        ) from error


def load_tokenizer(folder: Path) -> Any:
    try:
        return AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{folder / 'tokenizer'} holds no usable tokenizer: {error}"
        ) from error
