"""LoRA adapters: what they add, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from helios_serve.errors import CheckpointError
from helios_serve.logger import logger
from helios_serve.model_executor.loader import LoadedModel
from helios_serve.model_executor.lora_files import load_adapter
from helios_serve.model_executor.worker.model_runner import ModelRunner
from tests.support.lora_files import LAYERS, write_lora
from tests.support.models import load_model, loaded
from tests.support.videos import Case, our_latents


@pytest.fixture
def model(checkpoints: dict[str, Path], latent_model: Any) -> LoadedModel:
    loaded: LoadedModel = latent_model(checkpoints["distilled"])
    return loaded


@pytest.fixture
def lora(model: LoadedModel, tmp_path: Path) -> Path:
    return write_lora(tmp_path / "pytorch_lora_weights.safetensors", loaded(model.transformer))


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
    merged_model = load_model(str(folder))
    loaded(merged_model.vae).decode = loaded(model.vae).decode  # type: ignore[method-assign]
    merged = our_latents(merged_model, case)
    added = our_latents(model, case, lora=str(lora), lora_scale=0.7)
    assert (merged - added).abs().max() < 5e-5
    assert (added - our_latents(model, case)).abs().max() > 0.01


def test_every_layer_is_applied_and_their_number_is_told(
    model: LoadedModel, lora: Path, caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    monkeypatch.setattr(logger, "propagate", True)
    count = model.config.transformer.num_layers * len(LAYERS)
    assert len(load_adapter(str(lora.parent), loaded(model.transformer), 1.0).layers) == count
    with caplog.at_level("INFO", logger="helios_serve"):
        our_latents(model, Case("distilled", chunks=1).with_defaults(), lora=str(lora))
    assert f"{lora}: {count} LoRA layers applied" in caplog.messages


def test_a_scale_of_zero_changes_nothing(model: LoadedModel, lora: Path) -> None:
    case = Case("distilled", chunks=1).with_defaults()
    added = our_latents(model, case, lora=str(lora), lora_scale=0.0)
    assert torch.equal(added, our_latents(model, case))


def test_sessions_with_the_same_adapter_share_it(model: LoadedModel, lora: Path) -> None:
    runner = ModelRunner(
        model.config, loaded(model.transformer), model.device, num_blocks=100, text_bytes=1 << 20
    )
    adapters = [
        runner._adapter(Case("distilled").request(lora=str(lora), lora_scale=scale))
        for scale in (1.0, 1.0, 0.5)
    ]
    assert adapters[0] is adapters[1]
    assert adapters[0] is not adapters[2]


def test_alpha_comes_from_the_file(model: LoadedModel, lora: Path) -> None:
    tensors, transformer = load_file(lora), loaded(model.transformer)
    name = "transformer.blocks.0.attn1.to_q"
    plain = load_adapter(str(lora), transformer, 1.0).layers["blocks.0.attn1.to_q"].up
    save_file(tensors, lora, {"lora_adapter_metadata": json.dumps({"transformer.lora_alpha": 8})})
    doubled = load_adapter(str(lora), transformer, 1.0).layers["blocks.0.attn1.to_q"].up
    save_file(tensors | {f"{name}.alpha": torch.tensor(2.0)}, lora)
    halved = load_adapter(str(lora), transformer, 1.0).layers["blocks.0.attn1.to_q"].up
    torch.testing.assert_close(doubled, 2 * plain)
    torch.testing.assert_close(halved, plain / 2)


def test_adapters_that_would_do_nothing_or_fit_nowhere_are_refused(
    model: LoadedModel, lora: Path, tmp_path: Path
) -> None:
    empty, stranger, torn = (tmp_path / f"{name}.safetensors" for name in "abc")
    save_file({"some.weight": torch.zeros(1)}, empty)
    write_lora(stranger, loaded(model.transformer), prefix="unet.")
    torn.write_bytes(lora.read_bytes()[:-10])
    tensors = load_file(lora)
    halves = tmp_path / "halves.safetensors"
    save_file({key: value for key, value in tensors.items() if "lora_A" in key}, halves)
    misshapen = tmp_path / "misshapen.safetensors"
    save_file({key: value[:, :2].contiguous() for key, value in tensors.items()}, misshapen)
    surplus, pattern, torn_metadata = (tmp_path / f"{name}.safetensors" for name in "def")
    save_file(tensors | {"transformer.blocks.0.attn1.to_q.dora": torch.zeros(1)}, surplus)
    metadata = {"transformer.alpha_pattern": {"to_q": 2}}
    save_file(tensors, pattern, {"lora_adapter_metadata": json.dumps(metadata)})
    save_file(tensors, torn_metadata, {"lora_adapter_metadata": "{"})
    for path, message in (
        (surplus, "attn1.to_q.dora: cannot be applied"),
        (pattern, "adapters with alpha_pattern are not supported"),
        (torn_metadata, "adapter metadata is not valid JSON"),
        (empty, "no LoRA layer found"),
        (stranger, "the model has no such linear layer"),
        (torn, "is damaged"),
        (halves, "lacks transformer.blocks.0.*lora_B.weight"),
        (misshapen, "got shapes"),
        (tmp_path / "nothing", "expected a safetensors file or a folder"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_adapter(str(path), loaded(model.transformer), 1.0)
