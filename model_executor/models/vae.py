"""The Wan VAE of diffusers, a chunk at a time, in the model's latent space."""

import hashlib
import threading
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

from helios_serve.model_executor.models.helios.conditioning import Posterior

MAX_CACHED_BYTES = 256 << 20


class Vae:
    """Thin wrapper of AutoencoderKLWan.

    Chunks decode independently of each other: the causal cache starts fresh for each. The cache
    belongs to the model, so encoding and decoding in two threads take turns. Posteriors
    of reference images are cached by size and the hash of their pixels.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self._turn = threading.Lock()
        shape = (1, model.config.z_dim, 1, 1, 1)
        options = {"dtype": model.dtype, "device": model.device}
        self._mean = torch.tensor(model.config.latents_mean, **options).view(shape)
        self._scale = 1.0 / torch.tensor(model.config.latents_std, **options).view(shape)
        self._posteriors: OrderedDict[tuple[tuple[int, ...], str], Posterior] = OrderedDict()

    @torch.inference_mode()
    def encode(self, frames: Tensor) -> Posterior:
        """RGB frames (frames, height, width, 3), uint8 -> posterior of (1, 16, latents, h, w)."""
        pixels = hashlib.sha256(frames.contiguous().numpy().tobytes())
        key = (tuple(frames.shape), pixels.hexdigest())
        if key in self._posteriors:
            self._posteriors.move_to_end(key)
            return self._posteriors[key]
        video = frames.to(self.model.device).permute(3, 0, 1, 2)[None].float() / 255
        with self._turn:
            belief = self.model.encode((2 * video - 1).to(self.model.dtype)).latent_dist
        posterior = self._posteriors[key] = Posterior(belief.mean, belief.std)
        while sum(map(num_bytes, self._posteriors.values())) > MAX_CACHED_BYTES:
            self._posteriors.popitem(last=False)
        return posterior

    def normalize(self, latents: Tensor) -> Tensor:
        """VAE latents -> the model's latents."""
        return (latents - self._mean) * self._scale

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """The model's latents (16, 9, h, w) -> RGB frames (33, height, width, 3), uint8, CPU."""
        raw = latents[None].to(self.model.device, self.model.dtype) / self._scale + self._mean
        with self._turn:
            video: Tensor = self.model.decode(raw, return_dict=False)[0][0]
        pixels = (video.float() / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
        return pixels.permute(1, 2, 3, 0).contiguous().cpu()


def num_bytes(posterior: Posterior) -> int:
    return posterior.mean.nbytes + posterior.std.nbytes
