"""Operations and bytes of decoding a chunk in bfloat16, counted on the meta device.

    python benchmarks/micro/vae_counts.py --size 640x384

Counts each operation of torch that is not a view, with the bytes of its inputs and outputs, and
each call of a fused kernel as one operation. Nothing is computed, so these are no timings.
"""

import argparse
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from helios_serve.entrypoints.cli.arguments import size
from helios_serve.kernels import registry
from helios_serve.model_config import CHUNK_LATENTS, LATENT_CHANNELS
from helios_serve.model_executor.models.wan_vae.autoencoder import WanVae


class Count(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types there
    """Counts dispatched operations inside the context."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = 0
        self.bytes = 0

    def __torch_dispatch__(
        self, function: Any, _: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        allocates = function.name().startswith(("aten::empty", "aten::new_empty"))
        if not function.is_view and not allocates:
            self.add([*tree_leaves((args, kwargs)), *tree_leaves(out)])
        return out

    def add(self, values: list[Any]) -> None:
        self.operations += 1
        self.bytes += sum(value.nbytes for value in values if isinstance(value, Tensor))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=size, default=(640, 384), metavar="WIDTHxHEIGHT")
    width, height = parser.parse_args().size
    with torch.device("meta"):
        model = WanVae({}).to(torch.bfloat16)
        shape = LATENT_CHANNELS, CHUNK_LATENTS, height // 8, width // 8
        latents = torch.empty(shape, dtype=torch.bfloat16)
    count = Count()

    def norm_silu(frames: Tensor, weight: Tensor, past: Tensor | None) -> Tensor:
        length = len(frames) + (0 if past is None else len(past))
        out = frames.new_empty(length, *frames.shape[1:])
        count.add([frames, weight, past, out])
        return out

    kernels = registry.REFERENCE._replace(norm_silu=norm_silu)
    registry.implement.cache_clear()
    registry.REFERENCE = kernels
    with torch.inference_mode(), count:
        model.decode(latents)
    print(f"{count.operations} operations, {count.bytes / 1e9:.0f} GB")


if __name__ == "__main__":
    main()
