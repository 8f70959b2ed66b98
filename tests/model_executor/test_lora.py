"""LoRA adapters: what they add, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_files import LAYERS, write_lora
from safetensors.torch import load_file, save_file
from videos import Case, our_latents

from helios_serve.errors import CheckpointError
from helios_serve.model_executor.loader import LoadedModel, load_model
from helios_serve.model_executor.lora_files import load_adapter


@pytest.fixture
def model(checkpoints: dict[str, Path], latent_model: Any) -> LoadedModel:
    loaded: LoadedModel = latent_model(checkpoints["distilled"])
    return loaded


@pytest.fixture
def lora(model: LoadedModel, tmp_path: Path) -> Path:
    return write_lora(tmp_path / "pytorch_lora_weights.safetensors", model.transformer)


def test_an_adapter_equals_the_same_terms_merged_into_the_weights(
    checkpoints: dict[str, Path], model: LoadedModel, lora: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(checkpoints["distilled"], tmp_path / "merged")
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors, terms = load_file(weights), load_file(lora)
    for key in (key for key in terms if key.endswith("lora_A.weight")):
        name = key.removeprefix("transformer.").removesuffix(".lora_A.weight")
        up = terms[key.replace("lora_A", "lora_B")]
        tensors[f"{name}.weight"] += 0.7 * up @ terms[key]
    save_file(tensors, weights)
    case = Case("distilled", chunks=1).with_defaults()
    merged_model = load_model(str(folder), device="cpu")
    merged_model.vae.decode = model.vae.decode  # type: ignore[method-assign]
    merged = our_latents(merged_model, case)
    added = our_latents(model, case, lora=str(lora), lora_scale=0.7)
    assert (merged - added).abs().max() < 5e-5
    assert (added - our_latents(model, case)).abs().max() > 0.01


def test_every_layer_is_applied_and_counted(model: LoadedModel, lora: Path) -> None:
    adapter = load_adapter(str(lora.parent), model.transformer, 1.0)
    assert len(adapter.layers) == model.config.transformer.num_layers * len(LAYERS)


def test_alpha_comes_from_the_file(model: LoadedModel, lora: Path) -> None:
    tensors = load_file(lora)
    name = "transformer.blocks.0.attn1.to_q"
    plain = load_adapter(str(lora), model.transformer, 1.0).layers["blocks.0.attn1.to_q"].up
    save_file(tensors, lora, {"lora_adapter_metadata": json.dumps({"transformer.lora_alpha": 8})})
    doubled = load_adapter(str(lora), model.transformer, 1.0).layers["blocks.0.attn1.to_q"].up
    save_file(tensors | {f"{name}.alpha": torch.tensor(2.0)}, lora)
    halved = load_adapter(str(lora), model.transformer, 1.0).layers["blocks.0.attn1.to_q"].up
    torch.testing.assert_close(doubled, 2 * plain)
    torch.testing.assert_close(halved, plain / 2)


def test_adapters_that_would_do_nothing_or_fit_nowhere_are_refused(
    model: LoadedModel, lora: Path, tmp_path: Path
) -> None:
    empty, stranger, torn = (tmp_path / f"{name}.safetensors" for name in "abc")
    save_file({"some.weight": torch.zeros(1)}, empty)
    write_lora(stranger, model.transformer, prefix="unet.")
    torn.write_bytes(lora.read_bytes()[:-10])
    tensors = load_file(lora)
    halves = tmp_path / "halves.safetensors"
    save_file({key: value for key, value in tensors.items() if "lora_A" in key}, halves)
    misshapen = tmp_path / "misshapen.safetensors"
    save_file({key: value[:, :2].contiguous() for key, value in tensors.items()}, misshapen)
    for path, message in (
        (empty, "no LoRA layer found"),
        (stranger, "the model has no such linear layer"),
        (torn, "is damaged"),
        (halves, "lacks transformer.blocks.0.*lora_B.weight"),
        (misshapen, "got shapes"),
        (tmp_path / "nothing", "expected a safetensors file or a folder"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_adapter(str(path), model.transformer, 1.0)
