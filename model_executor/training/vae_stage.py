"""The training of the VAE, anchored to the linear codec.

The encoder learns the codec's latents and the decoder learns to draw frames from them, so both have
a target from the first step, and the transformer can be trained on the codec's latents meanwhile.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from numpy.random import Generator
from torch import Tensor, nn

from helios_serve.model_config import CHUNK_FRAMES
from helios_serve.model_executor.training.codec import GROUP, Codec, psnr
from helios_serve.model_executor.training.contact_sheet import write_sheet
from helios_serve.model_executor.training.optimizer import Optimizer, rate_scale
from helios_serve.model_executor.training.recipe import Recipe
from helios_serve.model_executor.training.world.renderer import render
from helios_serve.model_executor.training.world.scene import draw_clip

LATENT_NOISE = 0.05
"""Noise on the decoder's training latents, because generated latents are not exact."""
LOG_VARIANCE = -8.0
"""Log variance of the encoder's posterior: so small that a sample is nearly the mean."""


class Fidelity(NamedTuple):
    """Peak signal-to-noise ratios in dB: of the decoder alone, and of encoder and decoder."""

    decoder: float
    both: float


class VaeStage:
    """Trains the VAE on frames that are rendered as they are needed."""

    name = "vae"

    def __init__(
        self, recipe: Recipe, codec: Codec, *, start: dict[str, Tensor] | None = None
    ) -> None:
        self.recipe = recipe
        self.steps = recipe.steps.vae
        self.codec = codec
        self.model = build_vae(recipe)
        if start is not None:
            self.model.load_state_dict(start, strict=False)
        self.optimizer = Optimizer(
            self.model, muon_rate=recipe.vae_rate, adam_rate=recipe.vae_rate, is_matrix=is_inner
        )

    def step(self, index: int) -> dict[str, float]:
        rng = np.random.default_rng([self.recipe.seed, 4, index])
        frames = draw_frames(rng, self.recipe, self.recipe.vae_batch, held_out=False)
        # The VAE is causal, so that the start of a chunk teaches as much for less.
        count = self.recipe.vae_latents
        latents = self.codec.encode(frames)[:, :, :count]
        video = as_video(frames[:, : 1 + GROUP * (count - 1)])
        encoding = (self.model.encode(video).latent_dist.mean - latents).square().mean()
        noise = torch.from_numpy(rng.standard_normal(latents.shape, dtype=np.float32))
        decoded = self.model.decode(latents + LATENT_NOISE * noise).sample
        decoding = (decoded - video).square().mean()
        # Latents have variance 1 and pixels about 0.25.
        torch.autograd.backward(encoding + 4 * decoding)
        norm = self.optimizer.step(index, rate_scale(index, self.steps, self.recipe.warm_up))
        return {
            "loss": float(encoding.detach() + 4 * decoding.detach()),
            "encoding": float(encoding.detach()),
            "decoder_db": float(10 * torch.log10(4 / decoding.detach())),
            "norm": norm,
        }

    def tensors(self) -> dict[str, Tensor]:
        return self.optimizer.tensors()

    def restore(self, tensors: dict[str, Tensor]) -> None:
        self.optimizer.restore(tensors)

    def sheet(self, path: Path) -> dict[str, float]:
        """Show held-out chunks: each as it is, and after encoder and decoder."""
        model = build_vae(self.recipe)
        model.load_state_dict(self.optimizer.average, strict=False)
        rng = np.random.default_rng([self.recipe.seed, 5])
        frames = draw_frames(rng, self.recipe, self.recipe.probe_videos // 3 or 1, held_out=True)
        fidelity, shown = measure_vae(model, self.codec, frames)
        pairs = [video.numpy() for pair in zip(frames, shown, strict=True) for video in pair]
        names = ["rendered", "encoded and decoded"] * len(frames)
        write_sheet(path, pairs[:8], names[:8])
        return fidelity._asdict()


def build_vae(recipe: Recipe) -> Any:
    """Build the VAE: residual branches start at zero, resampling passes features on."""
    torch.manual_seed(recipe.seed)
    model = AutoencoderKLWan(**recipe.vae, latents_mean=[0.0] * 16, latents_std=[1.0] * 16)
    for name, parameter in model.named_parameters():
        if ".conv2.weight" in name or ".proj.weight" in name:
            nn.init.zeros_(parameter)
        elif ".resample.1.weight" in name or ".time_conv.weight" in name:
            pass_on(parameter)
    with torch.no_grad():
        model.quant_conv.weight[16:] = 0.0
        model.quant_conv.bias[16:] = LOG_VARIANCE
    return model


@torch.no_grad()
def pass_on(weight: Tensor) -> None:
    """Let a convolution pass on its inputs, in turn if there are more or fewer outputs.

    The newest frame is the last of a causal convolution over time, (3, 1, 1); (3, 3) is centred.
    """
    out, channels = weight.shape[:2]
    nn.init.normal_(weight, std=0.02)
    places = (-1, 0, 0) if weight.ndim == 5 else (1, 1)
    for index in range(max(out, channels)):
        weight[(index % out, index % channels, *places)] += 1.0 / max(1, channels // out)


def is_inner(name: str, parameter: Tensor) -> bool:
    """Return whether a weight is a convolution between hidden features, which Muon updates."""
    ends = ("conv_in", "conv_out", "quant_conv")
    return parameter.ndim >= 4 and name.endswith("weight") and not any(end in name for end in ends)


def draw_frames(rng: Generator, recipe: Recipe, count: int, *, held_out: bool) -> Tensor:
    """Render chunks: RGB frames (count, 33, height, width, 3), uint8."""
    chunks = [
        render(
            draw_clip(rng, recipe.grammar, chunks=1, size=recipe.size, held_out=held_out),
            CHUNK_FRAMES,
            recipe.size,
        )
        for _ in range(count)
    ]
    return torch.from_numpy(np.stack(chunks))


def as_video(frames: Tensor) -> Tensor:
    """(batch, frames, height, width, 3), uint8 -> (batch, 3, frames, height, width), -1 to 1."""
    return frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def as_frames(video: Tensor) -> Tensor:
    """The reverse of `as_video`."""
    pixels = ((video + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 4, 1)


@torch.no_grad()
def measure_vae(model: Any, codec: Codec, frames: Tensor) -> tuple[Fidelity, Tensor]:
    """Return the fidelity on frames (batch, 33, height, width, 3), and what comes out."""
    shown = as_frames(model.decode(model.encode(as_video(frames)).latent_dist.mean).sample)
    decoded = as_frames(model.decode(codec.encode(frames)).sample)
    return Fidelity(psnr(decoded, frames), psnr(shown, frames)), shown
