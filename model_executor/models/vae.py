"""The Wan VAE, which encodes references and decodes chunks."""

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from helios_serve.errors import DeviceError
from helios_serve.kernels.registry import kernels_of
from helios_serve.logger import logger
from helios_serve.model_config import CHUNK_LATENTS, LATENT_CHANNELS, Geometry
from helios_serve.model_executor.models.helios.conditioning import Posterior
from helios_serve.model_executor.models.wan_vae.autoencoder import WanVae
from helios_serve.model_executor.models.wan_vae.causal_conv import CausalConv3d, CausalState
from helios_serve.model_executor.models.wan_vae.decoder import conv_weights, flops_per_pixel

MAX_CACHED_BYTES = 256 << 20
"""Maximum bytes of cached posteriors."""
GRAPHS_PER_SIZE = 8
"""Limit of compiled graphs per size. The decoder needs more than one: a chunk's first latents are
handled differently from the others."""
STANCE = "eager_on_recompile"
"""torch.compiler's stance after `Vae.compile`: nothing is compiled while serving."""


class Vae:
    """Encodes references to posteriors, and decodes latents to frames.

    Each chunk is decoded independently, with an empty causal state, unless `render` is given one.
    `model` is used on `device`, and only within the context `on_device`, so its weights may be
    offloaded otherwise: `encode` and `decode`, which two threads may call, exclude each other.
    Posteriors of references are cached by shape and hash of the pixels. The decoder may have
    another dtype than fp32; latents are scaled in fp32 in any case.
    """

    def __init__(
        self, model: WanVae, device: torch.device, on_device: AbstractContextManager[object]
    ) -> None:
        self.model = model
        self.device = device
        self.on_device = on_device
        self._lock = threading.Lock()
        shape = (1, model.config.z_dim, 1, 1, 1)
        self._mean = torch.tensor(model.config.latents_mean, device=device).view(shape)
        self._scale = 1.0 / torch.tensor(model.config.latents_std, device=device).view(shape)
        self._is_compiled = False
        self._posteriors: OrderedDict[tuple[tuple[int, ...], str], Posterior] = OrderedDict()

    @property
    def decode_flops(self) -> float:
        """FLOPs of decoding a pixel, at least."""
        return flops_per_pixel(self.model.decoder)

    @property
    def encode_flops(self) -> float:
        """FLOPs of encoding a pixel, at least: those of the blocks at the full resolution."""
        blocks = self.model.encoder.down_blocks[: self.model.config.num_res_blocks]
        return 2.0 * sum(map(conv_weights, blocks))

    @torch.inference_mode()
    def encode(self, frames: Tensor) -> Posterior:
        """RGB frames (frames, height, width, 3), uint8 -> posterior (1, 16, latents, h, w)."""
        pixels = hashlib.sha256(frames.contiguous().numpy().tobytes())
        key = (tuple(frames.shape), pixels.hexdigest())
        if key in self._posteriors:
            self._posteriors.move_to_end(key)
            return self._posteriors[key]
        video = frames.to(self.device).float() / 255
        with self._lock, self.on_device:
            moments = self.model.encode(2 * video - 1)
        posterior = self._posteriors[key] = Posterior(*moments)
        while sum(map(num_bytes, self._posteriors.values())) > MAX_CACHED_BYTES:
            self._posteriors.popitem(last=False)
        return posterior

    def normalize(self, latents: Tensor) -> Tensor:
        """Convert VAE latents to the latents of the transformer."""
        return (latents - self._mean) * self._scale

    def decode(self, latents: Tensor) -> Tensor:
        """`render`, on the CPU."""
        return self.render(latents).cpu()

    def new_state(self) -> CausalState:
        """Return the decoder's state before the first chunk of a video."""
        return CausalState(kernels_of(self._mean).norm_silu)

    @torch.inference_mode()
    def render(self, latents: Tensor, state: CausalState | None = None) -> Tensor:
        """Latents (16, 9, h, w) -> RGB frames (33, height, width, 3), uint8, on the device.

        With `state` they continue the chunk before, and extend it.
        """
        raw = (latents[None].to(self.device, torch.float32) / self._scale + self._mean)[0]
        raw = raw.to(self.model.post_quant_conv.weight.dtype)
        with self._lock, self.on_device, self._stance():
            video = self.model.decode(raw, state)
        return (video.float() / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)

    def compile(self, sizes: Sequence[Geometry], *, is_continuous: bool = False) -> None:
        """Compile the decoder for frames of `sizes`. Call it before serving.

        With `is_continuous` chunks will have a state: the first one of a video, and later ones.
        Other sizes are decoded without compilation, and nothing is compiled later. Raises
        DeviceError if the decoder cannot be compiled for the device.
        """
        from torch._dynamo import config  # imported here because it takes a second
        from torch._dynamo.exc import TorchDynamoException

        self.model.decoder.compile(dynamic=False)
        limit = GRAPHS_PER_SIZE * len(sizes)
        for size in sizes:
            name = f"{size.width}x{size.height}"
            logger.info("compiling the VAE's decoder for %s", name)
            started = time.perf_counter()
            try:
                with config.patch(recompile_limit=limit, fail_on_recompile_limit_hit=True):
                    self._try(size, is_continuous=is_continuous)
            except TorchDynamoException as error:
                reason = str(error).splitlines()[0]
                raise DeviceError(
                    f"the VAE's decoder could not be compiled for {name} on {self.device}: install "
                    "a C++ compiler (CPU) or Triton (GPU), or leave compile sizes out. Reason: "
                    f"{reason}"
                ) from error
            logger.info(
                "compiled the VAE's decoder for %s in %.0f s", name, time.perf_counter() - started
            )
        self._is_compiled = True

    def _try(self, size: Geometry, *, is_continuous: bool) -> None:
        """Render what chunks of a size will be: alone, or the first and the second of a video."""
        latents = torch.zeros(LATENT_CHANNELS, CHUNK_LATENTS, *size.latent_size)
        state = self.new_state() if is_continuous else None
        for _ in range(2 if is_continuous else 1):
            self.render(latents, state)

    def _stance(self) -> AbstractContextManager[object]:
        """Return a context in which, after `compile`, other sizes run without compilation."""
        return torch.compiler.set_stance(STANCE) if self._is_compiled else nullcontext()


def put_channels_last(model: nn.Module) -> None:
    """Convert the weights of convolutions to channels-last, which determines their outputs' layout.

    On a CPU with AMX this is faster in bfloat16 but not in fp32: see benchmarks/micro/vae.py.
    """
    layouts = {5: torch.channels_last_3d, 4: torch.channels_last}
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d | CausalConv3d):
            layout = layouts[module.weight.dim()]
            module.weight.data = module.weight.data.contiguous(memory_format=layout)


def num_bytes(posterior: Posterior) -> int:
    return posterior.mean.nbytes + posterior.std.nbytes
