"""Exported checkpoints: the server generates what the training's rollout does."""

from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from helios_serve import Helios
from helios_serve.errors import CheckpointError
from helios_serve.model_config import Variant
from helios_serve.model_executor.components import flatten_patch_weight
from helios_serve.model_executor.models.helios.config import read_config
from helios_serve.model_executor.models.nano import checkpoint
from helios_serve.model_executor.training.codec import Codec
from helios_serve.model_executor.training.export import (
    CODEC_FILE,
    export_checkpoint,
    package_weights,
    stored_patch_weight,
)
from helios_serve.model_executor.training.nano_model import NanoModel, variant_config
from helios_serve.model_executor.training.recipe import Recipe, tiny_recipe
from helios_serve.model_executor.training.rollout import Rollout
from helios_serve.model_executor.training.training import Training, unpack_weights
from helios_serve.model_executor.training.vae_stage import as_frames, build_vae
from helios_serve.model_executor.worker.tensors import as_tensor

PACKAGED = ["codec.safetensors", "nano-base.safetensors", "nano-mid.safetensors"]
PACKAGED += ["nano.safetensors", "vae.safetensors"]
CODEC = Codec(torch.zeros(768), torch.zeros(16, 768), torch.ones(16))
RECIPE = msgspec.structs.replace(tiny_recipe(), width=128)
PROMPT = "a red ball moves right over a green field"
STEPS: dict[Variant, tuple[int, ...]] = {
    "base": (4,),
    "mid": (3, 2, 2),
    "distilled": (2, 2, 2),
}


def random_model() -> NanoModel:
    """Return a model far from its initial state, with weights that are exact in bfloat16."""
    model = NanoModel(RECIPE)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.2 * parameter.shape[-1] ** -0.5
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
            parameter.copy_(parameter.bfloat16())
    return model.eval()


@pytest.mark.parametrize("variant", STEPS)
def test_the_server_generates_what_the_rollout_does(tmp_path: Path, variant: Variant) -> None:
    """Over three chunks, so that the window slides, and with guidance if the variant has it."""
    model, vae = random_model(), build_vae(RECIPE)
    export_checkpoint(tmp_path, variant, RECIPE, model.state_dict(), vae.state_dict())
    guidance = 1.0 if variant == "distilled" else 2.0
    steps = STEPS[variant]
    rollout = Rollout(
        model,
        variant_config(variant, model.transformer.config),
        RECIPE.geometry,
        seeds=[5, 6],
        steps=steps,
        guidance=guidance,
    )
    expected = torch.cat([rollout.next_chunk([PROMPT, "the sand"]) for _ in range(3)], dim=2)
    options = {"num_inference_steps": steps[0]} if variant == "base" else {"steps": steps}
    video = Helios(str(tmp_path), dtype="float32").generate(
        PROMPT,
        width=RECIPE.width,
        height=RECIPE.height,
        num_frames=99,
        seed=5,
        guidance_scale=guidance,
        **options,
    )
    latents = torch.cat([as_tensor(part)[0] for part in video.latents], dim=1)
    assert latents.shape == expected[0].shape
    error = (latents - expected[0]).abs().max()
    assert float(error) < 1e-3 * float(expected[0].abs().max())


def test_an_export_is_deterministic_and_in_bfloat16(tmp_path: Path) -> None:
    model, vae = random_model(), build_vae(RECIPE)
    for name in ("first", "second"):
        export_checkpoint(tmp_path / name, "mid", RECIPE, model.state_dict(), vae.state_dict())
    files = sorted(path for path in (tmp_path / "first").rglob("*") if path.is_file())
    assert len(files) >= 9
    for path in files:
        other = tmp_path / "second" / path.relative_to(tmp_path / "first")
        assert path.read_bytes() == other.read_bytes()
    count = sum(tensor.numel() for tensor in [*model.parameters(), *vae.parameters()])
    stored = sum(path.stat().st_size for path in files if path.suffix == ".safetensors")
    assert stored < 2 * count + 60_000


def test_the_package_has_the_weights_of_an_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported, weights = tmp_path / "exported", tmp_path / "weights"
    model, vae = random_model(), build_vae(RECIPE)
    export_checkpoint(exported, "mid", RECIPE, model.state_dict(), vae.state_dict())
    package_weights(weights, {"nano-mid": exported}, CODEC)
    monkeypatch.setattr(checkpoint, "WEIGHTS", weights)
    stored = checkpoint.packaged_weights("nano-mid")
    for component, tensors in stored.items():
        (file,) = (exported / component).glob("*.safetensors")
        expected = load_file(file)
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    assert {path.stat().st_mode & 0o777 for path in weights.iterdir()} == {0o644}


def test_a_training_starts_from_the_packages_weights(tmp_path: Path) -> None:
    unpack_weights(tmp_path / "unpacked")
    training = Training(tmp_path / "next", Recipe(start=str(tmp_path / "unpacked")))
    again = tmp_path / "again"
    training.origin.package(again)  # type: ignore[union-attr]
    assert sorted(path.name for path in again.iterdir()) == PACKAGED
    for path in again.iterdir():
        assert path.read_bytes() == (checkpoint.WEIGHTS / path.name).read_bytes()
    assert torch.equal(training.codec.mean, load_file(checkpoint.WEIGHTS / CODEC_FILE)["mean"])
    with pytest.raises(CheckpointError, match="has a training already"):
        unpack_weights(tmp_path / "unpacked")


@pytest.mark.parametrize("variant", STEPS)
def test_the_rollout_has_the_configuration_of_the_checkpoint(
    tmp_path: Path, variant: Variant
) -> None:
    model = random_model()
    export_checkpoint(tmp_path, variant, RECIPE, model.state_dict(), build_vae(RECIPE).state_dict())
    assert read_config(tmp_path) == variant_config(variant, model.transformer.config)


@pytest.mark.parametrize("name", ["patch_long", "patch_mid", "patch_short", "patch_embedding"])
def test_patch_weights_return_as_they_were(name: str) -> None:
    weight: Tensor = getattr(random_model().transformer, name).weight
    key = f"{name}.weight"
    assert torch.equal(flatten_patch_weight(key, stored_patch_weight(key, weight)), weight)


def test_frames_of_the_decoder_are_those_of_the_server() -> None:
    video = torch.linspace(-1.2, 1.2, 2 * 3 * 5 * 4 * 4).view(2, 3, 5, 4, 4)
    frames = as_frames(video)
    assert frames.shape == (2, 5, 4, 4, 3)
    expected = (video / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    assert int((frames.permute(0, 4, 1, 2, 3).int() - expected.int()).abs().max()) <= 1
