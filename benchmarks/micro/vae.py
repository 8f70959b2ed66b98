"""Measures the VAE's time for a chunk, and its error, in each precision and memory layout.

    python benchmarks/micro/vae.py --compile --output results.json
    python benchmarks/micro/vae.py --model nano --size 128x64

Weights and latents are random. Frames are compared with those of fp32 without TF32, by PSNR; on
NVIDIA GPUs "float32" means TF32 where torch is left as it is. Needs torch, diffusers, transformers,
msgspec and safetensors.
"""

import argparse
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.benchmark import Timer

from helios_serve.benchmarks.measure.sections import Sections
from helios_serve.entrypoints.cli.arguments import size
from helios_serve.model_config import CHUNK_FRAMES, Geometry
from helios_serve.model_executor.components import build_vae
from helios_serve.model_executor.device import resolve_device
from helios_serve.model_executor.loader import open_checkpoint
from helios_serve.model_executor.models.vae import Vae, put_channels_last
from helios_serve.model_executor.models.wan_vae.autoencoder import WanVae
from helios_serve.model_executor.weights import fill_random

MODEL = "BestWishYsh/Helios-Distilled"
PRECISIONS = {
    "fp32": (torch.float32, False),
    "tf32": (torch.float32, True),
    "bf16": (torch.bfloat16, True),
}
"""The decoder's dtype, and whether convolutions in fp32 may be TF32."""


VARIANTS = ["contiguous", "channels last"]
"""Memory layout of convolution weights."""


def load_vae(folder: Path, dtype: torch.dtype, device: torch.device) -> Vae:
    module, component = build_vae(folder, dtype)
    fill_random(module, component, device, seed=0)
    assert isinstance(module, WanVae)
    return Vae(module.eval().requires_grad_(False), device, nullcontext())


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def psnr(frames: Tensor, reference: Tensor) -> float:
    """Return the PSNR of two uint8 videos in dB; infinite if they are equal."""
    error = (frames.double() - reference.double()).square().mean() / 255**2
    return -10 * float(error.log10())


def measure(
    arguments: argparse.Namespace, device: torch.device, sections: Sections
) -> list[dict[str, Any]]:
    folder = open_checkpoint(arguments.model, "dummy").folder
    width, height = arguments.size
    variants = [*VARIANTS, "channels last, compiled"] if arguments.compile else VARIANTS
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(16, 9, height // 8, width // 8, generator=generator).to(device)
    reference = None
    rows = []
    for name, (dtype, allowed) in PRECISIONS.items():
        if name == "tf32" and device.type != "cuda":
            continue
        for variant in variants:
            vae = load_vae(folder, dtype, device)
            if variant.startswith("channels last"):
                put_channels_last(vae.model)
            with tf32(allowed):
                if variant.endswith("compiled"):
                    vae.compile([Geometry(height, width)])
                frames = vae.decode(latents)
                timer = Timer("vae.decode(latents)", globals={"vae": vae, "latents": latents})
                seconds = timer.timeit(arguments.rounds).median
            reference = frames if reference is None else reference
            row = {
                "precision": name,
                "variant": variant,
                "seconds": seconds,
                "fps": CHUNK_FRAMES / seconds,
                "psnr": psnr(frames, reference),
            }
            print(
                f"{name}, {variant}: {seconds:.3f} s a chunk, {row['fps']:.1f} frames/s, "
                f"{row['psnr']:.1f} dB"
            )
            rows.append(row)
            sections.add("decoding", rows)
    return rows


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--model", default=MODEL, help=f"published model whose configuration is used ({MODEL})"
    )
    parser.add_argument("--size", type=size, default=(640, 384), metavar="WIDTHxHEIGHT")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="also measure a compiled decoder")
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    device = resolve_device(arguments.device)
    sections = Sections(
        arguments.output,
        settings={key: str(value) for key, value in vars(arguments).items() if key != "output"},
        hardware=f"{platform.machine()} CPU, {os.cpu_count()} cores"
        if device.type == "cpu"
        else torch.cuda.get_device_name(device),
        versions={"torch": torch.__version__, "python": platform.python_version()},
    )
    measure(arguments, device, sections)


if __name__ == "__main__":
    main()
