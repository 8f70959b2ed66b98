"""Gates A to C: the VAE, Mid, and Distilled with two steps and one step per stage."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from helios_serve.model_config import Variant
from helios_serve.model_executor.training.codec import Codec
from helios_serve.model_executor.training.contact_sheet import write_sheet
from helios_serve.model_executor.training.gates.figure import Figure
from helios_serve.model_executor.training.gates.pictures import Pictures
from helios_serve.model_executor.training.nano_model import NanoModel
from helios_serve.model_executor.training.probe import Probe, Seen, measure_probe
from helios_serve.model_executor.training.recipe import Recipe
from helios_serve.model_executor.training.vae_stage import draw_frames, measure_vae

HELD_OUT = 1
"""Seed of the gates' captions and noise. Contact sheets in training use 0."""
CHUNKS = 2
AT_ONCE = 25
"""Videos that are generated together."""
FIDELITY = {"decoder": 30.0, "both": 29.0}
"""Minimum PSNR in dB of the decoder alone, and of encoder and decoder."""
MID = {"background": 0.9, "colour": 0.9, "motion": 0.7}
DISTILLED = {
    "background": 0.98,
    "colour": 0.95,
    "motion": 0.85,
    "shape": 0.75,
    "one_object": 0.9,
}
"""Minimum shares of videos that show what their captions say."""
FEWER = 0.1
"""How much lower the shares may be with one step per stage."""


class Subject(NamedTuple):
    """The subject of gates: a model of a variant, with its recipe and its VAE."""

    variant: Variant
    model: NanoModel
    recipe: Recipe
    codec: Codec
    pictures: Pictures


def gate_a(vae: Any, recipe: Recipe, codec: Codec, *, chunks: int = 24) -> list[Figure]:
    """Measure a VAE on held-out chunks."""
    rng = np.random.default_rng([recipe.seed, 6])
    frames = draw_frames(rng, recipe, chunks, held_out=True)
    parts = [measure_vae(vae, codec, part)[0]._asdict() for part in torch.split(frames, 4)]
    # The mean error of all chunks, not the mean of decibels.
    return [
        Figure("A", f"{name}, dB", mean_decibels([part[name] for part in parts]), limit)
        for name, limit in FIDELITY.items()
    ]


def mean_decibels(values: list[float]) -> float:
    return float(-10 * np.log10(np.mean([10 ** (-value / 10) for value in values])))


def gate_b(subject: Subject, videos: int, sheet: Path) -> list[Figure]:
    """Measure Mid with the product's 20 steps per stage."""
    seen = generate(subject, Probe("mid", (20, 20, 20), subject.recipe.guidance, videos, CHUNKS))
    write_sheet(sheet, seen.videos[:12], seen.captions[:12])
    return [Figure("B", name, seen.figures[name], limit) for name, limit in MID.items()]


def gate_c(subject: Subject, videos: int, sheet: Path) -> list[Figure]:
    """Measure Distilled with (2, 2, 2) and (1, 1, 1) steps."""
    two = generate(subject, Probe("distilled", (2, 2, 2), 1.0, videos, CHUNKS))
    write_sheet(sheet, two.videos[:12], two.captions[:12])
    one = generate(subject, Probe("distilled", (1, 1, 1), 1.0, videos, CHUNKS))
    return [
        *(
            Figure("C", f"{name}, (2,2,2)", two.figures[name], limit)
            for name, limit in DISTILLED.items()
        ),
        *(
            Figure("C", f"{name}, (1,1,1)", one.figures[name], two.figures[name] - FEWER)
            for name in DISTILLED
        ),
    ]


def generate(subject: Subject, probe: Probe) -> Seen:
    """Generate a probe in parts, so that memory does not grow with it."""
    parts = []
    for start in range(0, probe.videos, AT_ONCE):
        count = min(AT_ONCE, probe.videos - start)
        parts.append(
            measure_probe(
                subject.model,
                subject.recipe,
                probe._replace(videos=count),
                subject.codec,
                seed=HELD_OUT + start,
                decode=subject.pictures.decode,
            )
        )
    weights = [len(part.videos) for part in parts]
    figures = {
        name: float(np.average([part.figures[name] for part in parts], weights=weights))
        for name in parts[0].figures
    }
    return Seen(
        [video for part in parts for video in part.videos],
        [caption for part in parts for caption in part.captions],
        figures,
    )
