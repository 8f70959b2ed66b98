"""Measures the VAE's time for a chunk, and its error, in each precision and memory layout.

    python benchmarks/micro/vae.py --compile --output results.json
    python benchmarks/micro/vae.py --model nano --size 128x64
    python benchmarks/micro/vae.py --seams 8    # of nano, chunks decoded alone and continuously

Weights and latents are random, but for --seams. Frames are compared with those of fp32 without
TF32, by PSNR; on NVIDIA GPUs "float32" means TF32 where torch is left as it is. Needs torch,
diffusers, transformers, msgspec and safetensors.
"""

import argparse
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.benchmark import Timer

from helios_serve.benchmarks.measure.sections import Sections
from helios_serve.entrypoints.cli.arguments import size
from helios_serve.model_config import CHUNK_FRAMES, Geometry
from helios_serve.model_executor.components import build_vae
from helios_serve.model_executor.device import resolve_device
from helios_serve.model_executor.loader import load_checkpoint, open_checkpoint
from helios_serve.model_executor.models.vae import Vae, put_channels_last
from helios_serve.model_executor.models.wan_vae.autoencoder import WanVae
from helios_serve.model_executor.training.world.captions import write_caption
from helios_serve.model_executor.training.world.renderer import render
from helios_serve.model_executor.training.world.scene import Clip, Grammar, draw_scene, draw_starts
from helios_serve.model_executor.weights import fill_random
from helios_serve.model_executor.worker.tensors import as_tensor
from helios_serve.offline import Helios
from helios_serve.options.sampling import default_size
from helios_serve.options.workers import DEFAULT_MODEL

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


def measure_seams(videos: int, chunks: int, device: torch.device) -> list[dict[str, Any]]:
    """Decode videos of nano, and true ones, each chunk alone and as what continues the others.

    A seam is the mean absolute difference of the frames at the edges of chunks, divided by that
    of neighbouring frames inside chunks. PSNR is that of the frames to the true ones.
    """
    helios = Helios(DEFAULT_MODEL, device=str(device))
    checkpoint = open_checkpoint(DEFAULT_MODEL, "auto")
    vae = load_checkpoint(checkpoint, device, torch.float32).vae
    assert vae is not None
    size, rng, rows = default_size(DEFAULT_MODEL), np.random.default_rng(0), []
    for number in range(videos):
        grammar = Grammar()
        scene = draw_scene(rng, grammar, held_out=True, things=1)
        starts = draw_starts(rng, grammar, scene, (size.height, size.width))
        clip = render(Clip((scene,), starts), chunks * CHUNK_FRAMES, (size.height, size.width))
        truth = torch.from_numpy(clip)
        made = helios.stream(
            write_caption(rng, scene), num_frames=len(truth), seed=number, **size._asdict()
        )
        latents = {
            "generated": [as_tensor(chunk.latents[0])[0] for chunk in made],
            "true": [
                vae.normalize(vae.encode(part).mean)[0].cpu()
                for part in torch.split(truth, CHUNK_FRAMES)
            ],
        }
        for kind, parts in latents.items():
            state = vae.new_state()
            for way, frames in (
                ("alone", torch.cat([vae.decode(part) for part in parts])),
                ("continuous", torch.cat([vae.render(part, state).cpu() for part in parts])),
            ):
                error = psnr(frames, truth) if kind == "true" else None
                rows.append({"kind": kind, "way": way, "seam": seam_of(frames), "psnr": error})
    return rows


def seam_of(frames: Tensor) -> float:
    """Return the mean step between chunks of a video, divided by the mean step inside them."""
    steps = frames.float().diff(dim=0).abs().mean(dim=(1, 2, 3))
    at_edge = torch.arange(1, len(frames)) % CHUNK_FRAMES == 0
    return float(steps[at_edge].mean() / steps[~at_edge].mean())


def print_seams(rows: list[dict[str, Any]]) -> None:
    for kind in ("generated", "true"):
        for way in ("alone", "continuous"):
            own = [row for row in rows if (row["kind"], row["way"]) == (kind, way)]
            error = (
                "" if kind == "generated" else f", {np.mean([row['psnr'] for row in own]):.2f} dB"
            )
            seams = [row["seam"] for row in own]
            print(
                f"{kind} videos, {way}: seam {np.mean(seams):.2f} "
                f"({min(seams):.2f} to {max(seams):.2f}){error}"
            )


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
    parser.add_argument("--seams", type=int, metavar="VIDEOS", help="measure seams of so many")
    parser.add_argument("--chunks", type=int, default=4, help="of each of these videos (4)")
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
    if arguments.seams is None:
        measure(arguments, device, sections)
        return
    rows = measure_seams(arguments.seams, arguments.chunks, device)
    sections.add("seams", rows)
    print_seams(rows)


if __name__ == "__main__":
    main()
