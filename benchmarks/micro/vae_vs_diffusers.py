"""Decodes, or encodes, a chunk with our VAE and with diffusers', on the same weights, in turns.

    python benchmarks/micro/vae_vs_diffusers.py --model nano --output results.json
    python benchmarks/micro/vae_vs_diffusers.py                   # the published widths
    python benchmarks/micro/vae_vs_diffusers.py --part encoder

Prints seconds of wall and CPU time, the largest difference of the pictures (-1 to 1) or of the
means of the latents, and how much memory each side takes at its peak, in a process of its own
(Linux). Weights and inputs are random, in fp32. Needs torch, diffusers, transformers, msgspec and
safetensors.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple, get_args

import msgspec
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from helios_serve.entrypoints.cli.arguments import size
from helios_serve.model_config import CHUNK_FRAMES, CHUNK_LATENTS, LATENT_CHANNELS, Geometry
from helios_serve.model_executor.components import build_vae
from helios_serve.model_executor.loader import open_checkpoint
from helios_serve.model_executor.models.wan_vae.autoencoder import WanVae
from helios_serve.model_executor.weights import fill_random

PUBLISHED = "BestWishYsh/Helios-Distilled"
OWN, DIFFUSERS = "helios-serve", "diffusers"

RESET_PEAK = Path("/proc/self/clear_refs")

Part = Literal["decoder", "encoder"]
PARTS: tuple[Part, ...] = get_args(Part)
Code = Callable[[Tensor], Tensor]
"""Latents (16, 9, h, w) -> RGB (33, height, width, 3), or RGB -> means (1, 16, 9, h, w)."""


class Seconds(NamedTuple):
    """Wall time of a chunk, and CPU time of all cores."""

    wall: float
    cpu: float


def coder(name: str, model: str, part: Part) -> Code:
    """Return a part of one of both, with random weights that are the same for both."""
    folder = open_checkpoint(model, load_format="dummy").folder
    own, component = build_vae(folder, torch.float32)
    assert isinstance(own, WanVae)
    fill_random(own, component, torch.device("cpu"), 0)
    own.eval().requires_grad_(False)
    if name == OWN:
        return own.decode if part == "decoder" else lambda frames: own.encode(frames).mean
    reference: Any = AutoencoderKLWan.from_config(json.loads(msgspec.json.encode(own.config)))
    reference.load_state_dict(own.state_dict())
    reference.eval().requires_grad_(False)

    def decode(latents: Tensor) -> Tensor:
        video: Tensor = reference.decode(latents[None], return_dict=False)[0][0]
        return video.permute(1, 2, 3, 0)

    def encode(frames: Tensor) -> Tensor:
        mean: Tensor = reference.encode(frames.permute(3, 0, 1, 2)[None]).latent_dist.mean
        return mean

    return decode if part == "decoder" else encode


def draw_input(geometry: Geometry, part: Part) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if part == "decoder":
        shape = (LATENT_CHANNELS, CHUNK_LATENTS, *geometry.latent_size)
        return torch.randn(shape, generator=generator)
    return torch.rand(CHUNK_FRAMES, geometry.height, geometry.width, 3, generator=generator) * 2 - 1


def timed(code: Code, given: Tensor) -> tuple[Tensor, Seconds]:
    wall, cpu = time.perf_counter(), time.process_time()
    made = code(given)
    return made, Seconds(time.perf_counter() - wall, time.process_time() - cpu)


def compare(model: str, part: Part, geometry: Geometry, rounds: int) -> dict[str, Any]:
    """Time both in turns, after an uncounted chunk of each."""
    given = draw_input(geometry, part)
    coders = {name: coder(name, model, part) for name in (OWN, DIFFUSERS)}
    times: dict[str, list[Seconds]] = {name: [] for name in coders}
    difference = 0.0
    for number in range(rounds + 1):
        made = {}
        for name, code in coders.items():
            made[name], seconds = timed(code, given)
            times[name] += [seconds] if number else []
        difference = max(difference, float((made[OWN] - made[DIFFUSERS]).abs().max()))
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
    """Return the MiB that each side adds to its process at its peak."""
    found = {}
    for name in (OWN, DIFFUSERS):
        command = [sys.executable, "-P", __file__, *arguments, "--peak-of", name]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found[name] = float(done.stdout)
    return found


def print_peak(name: str, model: str, part: Part, geometry: Geometry) -> None:
    code, given = coder(name, model, part), draw_input(geometry, part)
    RESET_PEAK.write_text("5")
    before = peak_kib()
    code(given)
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
    parser.add_argument("--part", choices=PARTS, default="decoder")
    parser.add_argument("--size", type=size, default=(128, 64), metavar="WIDTHxHEIGHT")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="write the result as JSON")
    parser.add_argument("--peak-of", choices=(OWN, DIFFUSERS), help=argparse.SUPPRESS)
    given = parser.parse_args()
    width, height = given.size
    geometry = Geometry(height, width)
    if given.peak_of:
        print_peak(given.peak_of, given.model, given.part, geometry)
        return
    found = compare(given.model, given.part, geometry, given.rounds)
    same = ["--model", given.model, "--size", f"{width}x{height}", "--part", given.part]
    found = {"model": given.model, "part": given.part, "size": f"{width}x{height}",
             "torch": torch.__version__,
             "threads": torch.get_num_threads(), "rounds": given.rounds,
             **found, "peak_mib": peak_memory(same)}  # fmt: skip
    print(json.dumps(found, indent=2))
    if given.output is not None:
        given.output.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
