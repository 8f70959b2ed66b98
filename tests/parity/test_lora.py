"""LoRA adapters against diffusers 0.42.1 and PEFT: the same files, the same terms and latents."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import HeliosTransformer3DModel
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from helios_serve.model_executor.components import flatten_patch_weight
from helios_serve.model_executor.loader import LoadedModel
from helios_serve.model_executor.lora_files import load_adapter
from helios_serve.model_executor.lora_names import wan_name
from helios_serve.model_executor.models.helios.conditioning import block_noise_factor
from tests.support.models import loaded
from tests.support.videos import Case, diffusers_latents, our_latents

RANK = 4
PATCHES = ("patch_embedding", "patch_short", "patch_mid", "patch_long")
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "alpha": {"lora_alpha": 10},
    "rsLoRA": {"lora_alpha": 3, "use_rslora": True},
    "patterns": {
        "rank_pattern": {"to_q": 2, r"blocks\.1\..*to_k": 6},
        "alpha_pattern": {"attn1.to_v": 9, "^proj_out": 1, "blocks.0.ffn.net.2": 2},
    },
    "rsLoRA with patterns": {
        "use_rslora": True,
        "rank_pattern": {"attn2.to_out.0": 3},
        "alpha_pattern": {"time_proj": 5, "patch_long": 7},
    },
}


def transformer_of(folder: Path) -> Any:
    return HeliosTransformer3DModel.from_pretrained(folder / "transformer")


def all_layers(transformer: nn.Module) -> list[str]:
    """Return all linear layers, as with `all-linear`, and the patch embeddings."""
    kinds = (nn.Linear, nn.Conv3d)
    return [name for name, layer in transformer.named_modules() if isinstance(layer, kinds)]


def with_adapter(folder: Path, **options: Any) -> Any:
    """Return diffusers' transformer with an adapter on every layer, strong enough to be visible."""
    transformer = transformer_of(folder)
    settings = {"r": RANK, "lora_alpha": RANK, "target_modules": all_layers(transformer)}
    transformer.add_adapter(LoraConfig(**(settings | options)))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, tensor in transformer.named_parameters():
            if "lora_" in name:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
    return transformer


def deltas(transformer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield what the loaded adapter adds to the weight of each layer, by the layer's name."""
    for name, layer in transformer.named_modules():
        if isinstance(layer, BaseTunerLayer):
            (adapter,) = layer.active_adapters
            delta: Tensor = layer.get_delta_weight(adapter)
            yield name, flatten_patch_weight(f"{name}.weight", delta.detach())


def check(path: Path, model: LoadedModel, transformer: nn.Module) -> int:
    """Compare our terms with those in diffusers' transformer. Returns the number of layers."""
    ours = load_adapter(str(path), loaded(model.transformer), 1.0).layers
    theirs = dict(deltas(transformer))
    assert ours.keys() == theirs.keys()
    for name, delta in theirs.items():
        torch.testing.assert_close(ours[name].up @ ours[name].down, delta, rtol=1e-4, atol=1e-6)
    return len(theirs)


@pytest.fixture
def model(checkpoints: dict[str, Path], latent_model: Any) -> LoadedModel:
    opened: LoadedModel = latent_model(checkpoints["distilled"])
    return opened


@pytest.fixture
def folder(checkpoints: dict[str, Path]) -> Path:
    return checkpoints["distilled"]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_file_of_diffusers(
    name: str, model: LoadedModel, folder: Path, tmp_path: Path, latent_pipeline: Any
) -> None:
    """`save_lora_weights` with metadata, and `load_lora_weights` in a fresh pipeline."""
    source = with_adapter(folder, **CONFIGS[name])
    pipeline = latent_pipeline(folder)
    pipeline.save_lora_weights(
        tmp_path,
        transformer_lora_layers=get_peft_model_state_dict(source, adapter_name="default"),
        transformer_lora_adapter_metadata=source.peft_config["default"].to_dict(),
    )
    state, metadata = pipeline.lora_state_dict(tmp_path, return_lora_metadata=True)
    fresh = transformer_of(folder)
    pipeline.load_lora_into_transformer(state, fresh, metadata=metadata)
    assert check(tmp_path, model, fresh) == len(all_layers(transformer_of(folder)))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_file_of_the_transformer_alone(
    name: str, model: LoadedModel, folder: Path, tmp_path: Path
) -> None:
    """`save_lora_adapter` writes keys and metadata without a prefix."""
    with_adapter(folder, **CONFIGS[name]).save_lora_adapter(tmp_path)
    fresh = transformer_of(folder)
    fresh.load_lora_adapter(tmp_path, prefix=None, use_safetensors=True)
    check(tmp_path, model, fresh)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_folder_of_peft(name: str, model: LoadedModel, folder: Path, tmp_path: Path) -> None:
    base = transformer_of(folder)
    settings = {"r": RANK, "lora_alpha": RANK, "target_modules": all_layers(base)}
    source = PeftModel(base, LoraConfig(**(settings | CONFIGS[name])))
    with torch.no_grad():
        for key, tensor in source.named_parameters():
            if "lora_" in key:
                tensor.copy_(torch.randn(tensor.shape) * 0.1)
    source.save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} >= {
        "adapter_model.safetensors",
        "adapter_config.json",
    }
    fresh = PeftModel.from_pretrained(transformer_of(folder), tmp_path)
    check(tmp_path, model, fresh.get_base_model())
    check(tmp_path / "adapter_model.safetensors", model, fresh.get_base_model())


def block_terms(transformer: nn.Module, *, only_blocks: bool) -> dict[str, tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(4)
    terms = {}
    for name, layer in transformer.named_modules():
        if isinstance(layer, nn.Linear) and (name.startswith("blocks.") or not only_blocks):
            down = torch.randn(RANK, layer.in_features, generator=generator) * 0.1
            terms[name] = down, torch.randn(layer.out_features, RANK, generator=generator) * 0.1
    return terms


def wan_file(path: Path, transformer: nn.Module, *, parts: tuple[str, str], alpha: bool) -> None:
    """A file in the names of Wan's own code, as ComfyUI reads it."""
    tensors = {}
    for name, term in block_terms(transformer, only_blocks=False).items():
        layer = f"diffusion_model.{wan_name(name)}"
        for part, tensor in zip(parts, term, strict=True):
            tensors[f"{layer}.{part}.weight"] = tensor
        if alpha and "blocks" in layer:
            tensors[f"{layer}.alpha"] = torch.tensor(2.0)
    save_file(tensors, path)


@pytest.mark.parametrize("alpha", [True, False])
@pytest.mark.parametrize("parts", [("lora_A", "lora_B"), ("lora_down", "lora_up")])
def test_a_file_in_the_names_of_wan(
    parts: tuple[str, str],
    alpha: bool,
    model: LoadedModel,
    folder: Path,
    tmp_path: Path,
    latent_pipeline: Any,
) -> None:
    fresh = transformer_of(folder)
    path = tmp_path / "comfy.safetensors"
    wan_file(path, fresh, parts=parts, alpha=alpha)
    pipeline = latent_pipeline(folder)
    pipeline.load_lora_into_transformer(pipeline.lora_state_dict(str(path)), fresh)
    check(path, model, fresh)


def test_a_file_of_kohya(
    model: LoadedModel, folder: Path, tmp_path: Path, latent_pipeline: Any
) -> None:
    fresh = transformer_of(folder)
    tensors: dict[str, Tensor] = {}
    for name, (down, up) in block_terms(fresh, only_blocks=True).items():
        layer = f"lora_unet_{wan_name(name).replace('.', '_')}"
        tensors |= {f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up}
        tensors[f"{layer}.alpha"] = torch.tensor(float(1 + len(name) % 5))
    path = tmp_path / "musubi.safetensors"
    save_file(tensors, path, {"ss_network_alpha": "16", "ss_network_dim": "Dynamic"})
    pipeline = latent_pipeline(folder)
    pipeline.load_lora_into_transformer(pipeline.lora_state_dict(str(path)), fresh)
    check(path, model, fresh)


def test_latents_are_those_of_diffusers_with_every_layer_adapted(
    model: LoadedModel,
    folder: Path,
    tmp_path: Path,
    latent_pipeline: Any,
    cholesky: Callable[[Tensor], None],
) -> None:
    """Patch and condition embedders have terms as well."""
    with_adapter(folder, lora_alpha=1).save_lora_adapter(tmp_path)
    case = Case("distilled", "v2v", chunks=1).with_defaults()
    pipeline = latent_pipeline(folder)
    cholesky(block_noise_factor(model.config.scheduler.gamma))
    pipeline.transformer.load_lora_adapter(tmp_path, prefix=None, use_safetensors=True)
    try:
        theirs = diffusers_latents(pipeline, case)
    finally:
        pipeline.transformer.delete_adapters(list(pipeline.transformer.peft_config))
    ours = our_latents(model, case, lora=str(tmp_path))
    assert (ours - our_latents(model, case)).abs().max() > 0.05
    assert (ours - theirs).abs().max() < 1e-4


def test_prefixed_metadata_is_what_diffusers_writes(folder: Path, tmp_path: Path) -> None:
    """It verifies an assumption of the other tests."""
    from safetensors import safe_open

    with_adapter(folder, lora_alpha=6).save_lora_adapter(tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    with safe_open(file, "pt") as stored:
        assert json.loads(stored.metadata()["lora_adapter_metadata"])["lora_alpha"] == 6
    assert any(key.startswith("patch_long.lora_A") for key in load_file(file))
