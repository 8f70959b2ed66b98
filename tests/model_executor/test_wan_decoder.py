"""The decoder against diffusers': the same parameters, the same pictures."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanUpsample
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from helios_serve.kernels.registry import META, REFERENCE
from helios_serve.model_executor.models.vae import Vae
from helios_serve.model_executor.models.wan_vae.autoencoder import WanVae
from helios_serve.model_executor.models.wan_vae.causal_conv import CausalState
from helios_serve.options.fields import options_of
from helios_serve.options.workers import WorkerOptions
from tests.support.wan_vaes import NANO, PUBLISHED, TOLERANCES, vae_pair


@torch.inference_mode()
def both(widths: dict[str, Any], latents: Tensor) -> tuple[Tensor, Tensor]:
    """Return frames decoded by diffusers and by our decoder, with the same random weights."""
    own, reference = vae_pair(widths, latents.dtype)
    expected = reference.decode(latents[None]).sample[0].permute(1, 2, 3, 0)
    return own.decode(latents), expected


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_videos_of_any_length_equal_those_of_diffusers(
    count: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    # diffusers rounds to fp32 before it repeats pixels, whatever their dtype.
    monkeypatch.setattr(WanUpsample, "forward", nn.Upsample.forward)
    latents = torch.randn(16, count, 6, 8, generator=torch.Generator().manual_seed(1)).to(dtype)
    got, expected = both(NANO, latents)
    assert got.shape == expected.shape == (4 * count - 3, 48, 64, 3)
    assert expected.std() > 0.1
    assert (got - expected).abs().max() < TOLERANCES[dtype]


@torch.inference_mode()
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_chunks_that_continue_a_video_are_those_of_diffusers_cache(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its cache is kept from chunk to chunk; of a later chunk's first four frames one is shown."""
    monkeypatch.setattr(WanUpsample, "forward", nn.Upsample.forward)
    own, reference = vae_pair(NANO, dtype)
    generator = torch.Generator().manual_seed(1)
    state = CausalState(REFERENCE.norm_silu)
    reference.clear_cache()
    for number, count in enumerate((3, 1, 3)):
        latents = torch.randn(16, count, 6, 8, generator=generator).to(dtype)
        frames = [
            reference.decoder(
                latent.unsqueeze(2),
                feat_cache=reference._feat_map,
                feat_idx=[0],
                first_chunk=number == place == 0,
            )
            for place, latent in enumerate(reference.post_quant_conv(latents[None]).unbind(2))
        ]
        expected = torch.cat(frames, 2)[0].permute(1, 2, 3, 0).clamp(-1, 1)
        got = own.decode(latents, state)
        assert len(got) == 4 * count - 3
        assert (got - expected[-len(got) :]).abs().max() < TOLERANCES[dtype]
        assert ((got - own.decode(latents)).abs().max() > 0.1) == (number > 0)
    assert state.num_bytes == sum(kept.nbytes for kept in state.frames.values()) > 0


@torch.inference_mode()
def test_the_state_of_a_session_takes_the_memory_that_the_option_states() -> None:
    with torch.device("meta"):
        model = WanVae(PUBLISHED).to(torch.bfloat16)
    state = CausalState(META.norm_silu)
    model.decode(torch.empty(16, 9, 48, 80, dtype=torch.bfloat16, device="meta"), state)
    description = options_of(WorkerOptions)["continuous_decode"].description
    assert f"{state.num_bytes / 1e9:.1f} GB of memory" in description


@pytest.mark.slow
def test_the_published_widths_equal_those_of_diffusers() -> None:
    latents = torch.randn(16, 9, 8, 16, generator=torch.Generator().manual_seed(1))
    got, expected = both(PUBLISHED, latents)
    assert (got - expected).abs().max() < 1e-5


def test_parameters_have_the_names_shapes_and_order_of_checkpoints() -> None:
    with torch.device("meta"):
        reference, own = AutoencoderKLWan(), WanVae({})
    shapes = [
        [(name, tensor.shape) for name, tensor in model.state_dict().items()]
        for model in (reference, own)
    ]
    assert shapes[0] == shapes[1]


@torch.inference_mode()
@pytest.mark.parametrize("settings", [NANO, PUBLISHED])
def test_the_flops_of_a_pixel_are_nearly_those_that_are_counted(settings: dict[str, Any]) -> None:
    """They bound the time of a chunk from below, so they must not be more."""
    with torch.device("meta"):
        vae = Vae(WanVae(settings), torch.device("meta"), nullcontext())
        video, latents = torch.empty(33, 64, 96, 3), torch.empty(16, 9, 8, 12)
        with FlopCounterMode(display=False) as encoding:
            vae.model.encode(video)
        with FlopCounterMode(display=False) as decoding:
            vae.model.decode(latents)
    pixels = 33 * 64 * 96
    assert 0.7 < vae.decode_flops * pixels / decoding.get_total_flops() <= 1
    assert 0.2 < vae.encode_flops * pixels / encoding.get_total_flops() <= 1
