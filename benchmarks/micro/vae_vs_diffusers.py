"""Decodes a chunk with our VAE decoder and with diffusers', on the same weights, in turns.

    python benchmarks/micro/vae_vs_diffusers.py --model nano --output results.json
    python benchmarks/micro/vae_vs_diffusers.py                   # the published widths

Prints seconds of wall and CPU time, the largest difference of the pictures (-1 to 1), and how much
memory each decoder takes at its peak, in a process of its own (Linux). Weights and latents are
random, in fp32. Needs torch, diffusers, transformers, msgspec and safetensors.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from helios_serve.entrypoints.cli.arguments import size
from helios_serve.model_config import CHUNK_LATENTS, LATENT_CHANNELS, Geometry
from helios_serve.model_executor.components import build_vae
from helios_serve.model_executor.loader import open_checkpoint
from helios_serve.model_executor.models.wan_vae.autoencoder import decode_latents
from helios_serve.model_executor.weights import fill_random

PUBLISHED = "BestWishYsh/Helios-Distilled"
OWN, DIFFUSERS = "helios-serve", "diffusers"

RESET_PEAK = Path("/proc/self/clear_refs")

Decode = Callable[[Tensor], Tensor]
"""Latents (16, 9, h, w) -> RGB (33, height, width, 3)."""


class Seconds(NamedTuple):
    """Wall time of a decode, and CPU time of all cores."""

    wall: float
    cpu: float


def decoder(name: str, model: str) -> Decode:
    """Return one of both decoders, with random weights that are the same for both."""
    folder = open_checkpoint(model, load_format="dummy").folder
    own, component = build_vae(folder, torch.float32)
    fill_random(own, component, torch.device("cpu"), 0)
    own.eval().requires_grad_(False)
    if name == OWN:
        return lambda latents: decode_latents(own, latents)
    reference: Any = AutoencoderKLWan.from_config(own.config)
    reference.load_state_dict(own.state_dict())
    reference.eval().requires_grad_(False)

    def decode(latents: Tensor) -> Tensor:
        video: Tensor = reference.decode(latents[None], return_dict=False)[0][0]
        return video.permute(1, 2, 3, 0)

    return decode


def draw_latents(geometry: Geometry) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (LATENT_CHANNELS, CHUNK_LATENTS, *geometry.latent_size)
    return torch.randn(shape, generator=generator)


def timed(decode: Decode, latents: Tensor) -> tuple[Tensor, Seconds]:
    wall, cpu = time.perf_counter(), time.process_time()
    video = decode(latents)
    return video, Seconds(time.perf_counter() - wall, time.process_time() - cpu)


def compare(model: str, geometry: Geometry, rounds: int) -> dict[str, Any]:
    """Time both in turns, after an uncounted decode of each."""
    latents = draw_latents(geometry)
    decoders = {name: decoder(name, model) for name in (OWN, DIFFUSERS)}
    times: dict[str, list[Seconds]] = {name: [] for name in decoders}
    difference = 0.0
    for number in range(rounds + 1):
        videos = {}
        for name, decode in decoders.items():
            videos[name], seconds = timed(decode, latents)
            times[name] += [seconds] if number else []
        difference = max(difference, float((videos[OWN] - videos[DIFFUSERS]).abs().max()))
    middle = {
        name: {kind: median(getattr(each, kind) for each in own) for kind in Seconds._fields}
        for name, own in times.items()
    }
    return {
        "seconds": middle,
        "ratio": {kind: middle[DIFFUSERS][kind] / middle[OWN][kind] for kind in Seconds._fields},
        "largest_difference": difference,
    }


def peak_memory(arguments: list[str]) -> dict[str, float]:
    """Return the MiB that each decoder adds to its process at its peak."""
    found = {}
    for name in (OWN, DIFFUSERS):
        command = [sys.executable, "-P", __file__, *arguments, "--peak-of", name]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found[name] = float(done.stdout)
    return found


def print_peak(name: str, model: str, geometry: Geometry) -> None:
    decode, latents = decoder(name, model), draw_latents(geometry)
    RESET_PEAK.write_text("5")
    before = peak_kib()
    decode(latents)
    print((peak_kib() - before) / 1024)


def peak_kib() -> int:
    """Return the most memory that this process had at once since RESET_PEAK was written to."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=PUBLISHED, help=f"default: {PUBLISHED}")
    parser.add_argument("--size", type=size, default=(128, 64), metavar="WIDTHxHEIGHT")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="write the result as JSON")
    parser.add_argument("--peak-of", choices=(OWN, DIFFUSERS), help=argparse.SUPPRESS)
    given = parser.parse_args()
    width, height = given.size
    geometry = Geometry(height, width)
    if given.peak_of:
        print_peak(given.peak_of, given.model, geometry)
        return
    found = compare(given.model, geometry, given.rounds)
    same = ["--model", given.model, "--size", f"{width}x{height}"]
    found = {"model": given.model, "size": f"{width}x{height}", "torch": torch.__version__,
             "threads": torch.get_num_threads(), "rounds": given.rounds,
             **found, "peak_mib": peak_memory(same)}  # fmt: skip
    print(json.dumps(found, indent=2))
    if given.output is not None:
        given.output.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
