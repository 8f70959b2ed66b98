"""The VAE wrapper against diffusers' own arithmetic."""

from pathlib import Path

import pytest
import torch
from models import load_model
from torch import Tensor

from helios_serve.model_executor.models import vae as vae_module
from helios_serve.model_executor.models.vae import Vae


@pytest.fixture(scope="module")
def vae(checkpoints: dict[str, Path]) -> Vae:
    return load_model(str(checkpoints["base"])).vae


def random_frames(count: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, height, width, 3), generator=generator).to(torch.uint8)


def test_a_chunk_decodes_as_diffusers_does(vae: Vae) -> None:
    latents = torch.randn(16, 9, 8, 16, generator=torch.Generator().manual_seed(0))
    settings = vae.model.config
    mean = torch.tensor(settings.latents_mean).view(1, 16, 1, 1, 1)
    std = torch.tensor(settings.latents_std).view(1, 16, 1, 1, 1)
    with torch.inference_mode():
        video = vae.model.decode(latents[None] * std + mean).sample[0]
    expected = ((video / 2 + 0.5).clamp(0, 1) * 255).permute(1, 2, 3, 0)
    got = vae.decode(latents)
    assert got.shape == (33, 64, 128, 3)
    assert (got - expected).abs().max() <= 0.5 + 1e-3


def test_a_decoder_in_half_precision_makes_nearly_the_same_pictures(
    vae: Vae, checkpoints: dict[str, Path]
) -> None:
    """And references are encoded as ever."""
    half = load_model(str(checkpoints["base"]), decode_dtype="bfloat16").vae
    assert half is not None
    latents = torch.randn(16, 9, 8, 8, generator=torch.Generator().manual_seed(0))
    error = half.decode(latents).double() - vae.decode(latents).double()
    assert 40 < -10 * (error / 255).square().mean().log10() < 70
    frames = random_frames(33, 64, 64)
    assert torch.equal(half.encode(frames).mean, vae.encode(frames).mean)


def test_encoding_undoes_normalisation(vae: Vae) -> None:
    posterior = vae.encode(random_frames(33, 64, 64))
    assert posterior.mean.shape == posterior.std.shape == (1, 16, 9, 8, 8)
    settings = vae.model.config
    expected = (posterior.mean[0, 3] - settings.latents_mean[3]) / settings.latents_std[3]
    assert (vae.normalize(posterior.mean)[0, 3] - expected).abs().max() < 1e-5


def test_posteriors_are_cached_by_pixels_and_size(vae: Vae) -> None:
    wide = random_frames(1, 64, 128)
    tall = wide.reshape(1, 128, 64, 3)
    first = vae.encode(wide)
    assert vae.encode(wide.clone()) is first
    assert vae.encode(tall).mean.shape == (1, 16, 1, 16, 8)


def test_the_posterior_cache_forgets_the_oldest(vae: Vae, monkeypatch: pytest.MonkeyPatch) -> None:
    small = Vae(vae.model, vae.device, vae.visit)
    first, second, third = (random_frames(1, 32, 32) + shade for shade in range(3))
    room = vae_module.num_bytes(vae.encode(first))
    monkeypatch.setattr(vae_module, "MAX_CACHED_BYTES", 2 * room)
    kept, dropped = small.encode(first), small.encode(second)
    assert small.encode(first) is kept
    small.encode(third)
    assert small.encode(first) is kept
    assert small.encode(second) is not dropped
