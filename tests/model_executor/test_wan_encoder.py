"""The encoder against diffusers: the same parameters, the same latents."""

from typing import Any

import pytest
import torch
from torch import Tensor

from helios_serve.errors import CheckpointError
from helios_serve.model_executor.models.wan_vae.autoencoder import Moments, WanVae
from tests.support.wan_vaes import NANO, PUBLISHED, TOLERANCES, vae_pair


@torch.inference_mode()
def both(widths: dict[str, Any], frames: Tensor) -> tuple[Moments, Any]:
    """Return latents by our encoder and by that of diffusers, with the same random weights."""
    own, reference = vae_pair(widths, frames.dtype)
    expected = reference.encode(frames.permute(3, 0, 1, 2)[None]).latent_dist
    return own.encode(frames), expected


def draw(count: int, height: int, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, height, width, 3, generator=generator, dtype=dtype) * 2 - 1


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("count", [1, 4, 5, 8, 9, 33])
def test_videos_of_any_length_equal_those_of_diffusers(count: int, dtype: torch.dtype) -> None:
    """Frames after the last group of four are left out by both."""
    got, expected = both(NANO, draw(count, 48, 64, dtype))
    assert got.mean.shape == expected.mean.shape == (1, 16, 1 + (count - 1) // 4, 6, 8)
    assert expected.mean.std() > 1e-3
    for own, other in zip(got, (expected.mean, expected.std), strict=True):
        assert (own - other).abs().max() < TOLERANCES[dtype]


@pytest.mark.slow
def test_the_published_widths_equal_those_of_diffusers() -> None:
    got, expected = both(PUBLISHED, draw(33, 64, 128))
    assert (got.mean - expected.mean).abs().max() < 1e-5
    assert (got.std - expected.std).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"is_residual": True}, "expected none of them, as in the VAE of Wan 2.1"),
        ({"patch_size": 2}, "expected none of them"),
        ({"dim_mult": [1, 2]}, "got 3 temperal_downsample, .* expected 1, 16 and 16"),
        ({"base_dim": "wide"}, "Expected `int`, got `str`"),
    ],
)
def test_other_vaes_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=f"vae/config.json: .*{message}"):
        WanVae(settings)
