"""Gate D: drift over a minute of video, references, and prompt switches."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from helios_serve.model_config import CHUNK_FRAMES, Variant
from helios_serve.model_executor.training.contact_sheet import write_sheet
from helios_serve.model_executor.training.gates.figure import Figure
from helios_serve.model_executor.training.gates.quality import Subject
from helios_serve.model_executor.training.nano_model import variant_config
from helios_serve.model_executor.training.probe import score, share
from helios_serve.model_executor.training.rollout import Rollout
from helios_serve.model_executor.training.world.captions import write_caption
from helios_serve.model_executor.training.world.detectors import detect
from helios_serve.model_executor.training.world.renderer import render
from helios_serve.model_executor.training.world.scene import Clip, Scene, draw_scene, draw_starts

STEPS: dict[Variant, tuple[int, ...]] = {
    "base": (16,),
    "mid": (8, 8, 8),
    "distilled": (2, 2, 2),
}
MINUTE = 44
"""Chunks of 60 s at 24 frames a second."""
PART = 0.15
"""The share of a video at its start and at its end that are compared, as HeliosBench does."""
WATCHED = ("background", "colour", "motion", "shape")

Video = NDArray[np.uint8]


class Case(NamedTuple):
    """A held-out scene, its caption and the seed of its video."""

    scene: Scene
    caption: str
    seed: int


class Long(NamedTuple):
    """A long video: the frames and latents of each chunk, and frame differences."""

    first: Video
    last: Video
    spread: tuple[float, float]
    seam: float
    inside: float


def gate_d(subject: Subject, videos: int, sheet: Path, *, chunks: int = MINUTE) -> list[Figure]:
    """Measure drift over a minute, references and a prompt switch."""
    cases = draw_cases(subject, videos, salt=7)
    longs = make_long(subject, cases, chunks)
    captions = [case.caption for case in cases]
    shown = [np.concatenate([long.first, long.last]) for long in longs]
    write_sheet(sheet, shown[:8], captions[:8], columns=12)
    return [
        *drift_figures(cases, longs),
        *image_figures(subject, videos),
        video_figure(subject, videos),
        switch_figure(subject, videos),
    ]


def draw_cases(subject: Subject, count: int, *, salt: int) -> list[Case]:
    rng = np.random.default_rng([subject.recipe.seed, salt])
    cases = []
    for _ in range(count):
        scene = draw_scene(rng, subject.recipe.grammar, held_out=True, things=1)
        cases.append(Case(scene, write_caption(rng, scene), int(rng.integers(2**31))))
    return cases


def start(
    subject: Subject, cases: list[Case], past: Tensor | None = None, anchor: Tensor | None = None
) -> Rollout:
    return Rollout(
        subject.model,
        variant_config(subject.variant, subject.model.transformer.config),
        subject.recipe.geometry,
        seeds=[case.seed for case in cases],
        steps=STEPS[subject.variant],
        guidance=1.0 if subject.variant == "distilled" else subject.recipe.guidance,
        past=past,
        anchor=anchor,
    )


def make_long(subject: Subject, cases: list[Case], chunks: int) -> list[Long]:
    """Generate long videos; only the first and last frames are kept, and differences of all."""
    rollout, captions = start(subject, cases), [case.caption for case in cases]
    count = max(1, round(chunks * PART))
    kept: list[list[Video]] = [[] for _ in cases]
    latents: list[Tensor] = []
    seams: list[list[float]] = [[] for _ in cases]
    inside: list[list[float]] = [[] for _ in cases]
    previous: Video | None = None
    for index in range(chunks):
        made = rollout.next_chunk(captions)
        frames = subject.pictures.decode(made).numpy()
        if index < count or index >= chunks - count:
            latents.append(made)
            for own, video in zip(kept, frames, strict=True):
                own.append(video)
        for number, video in enumerate(frames):
            inside[number].append(mean_step(video))
            if previous is not None:
                edge = np.stack([previous[number], video[0]])
                seams[number].append(mean_step(edge))
        previous = frames[:, -1]
    return [
        Long(
            np.concatenate(own[:count]),
            np.concatenate(own[-count:]),
            (
                float(torch.stack([part[number] for part in latents[:count]]).std()),
                float(torch.stack([part[number] for part in latents[-count:]]).std()),
            ),
            float(np.mean(seams[number])) if seams[number] else 0.0,
            float(np.mean(inside[number])),
        )
        for number, own in enumerate(kept)
    ]


def mean_step(video: Video) -> float:
    """Return the mean absolute difference of consecutive frames."""
    return float(np.abs(np.diff(video.astype(np.float32), axis=0)).mean())


def drift_figures(cases: list[Case], longs: list[Long]) -> list[Figure]:
    colour = [
        np.abs(long.first.mean(axis=(0, 1, 2)) - long.last.mean(axis=(0, 1, 2))).max()
        for long in longs
    ]
    spread = [abs(long.spread[1] / long.spread[0] - 1) for long in longs]
    seams = [long.seam / max(long.inside, 1e-3) for long in longs]
    scenes = [case.scene for case in cases]
    before = score(scenes, [detect(long.first) for long in longs])
    after = score(scenes, [detect(long.last) for long in longs])
    lost = [before[name] - after[name] for name in WATCHED]
    return [
        Figure("D", "mean colour, last 15 % to first, of 255", float(np.mean(colour)), 8, False),
        Figure("D", "latent deviation, change", float(np.mean(spread)), 0.1, False),
        Figure("D", "detection lost, share", float(np.mean(lost)), 0.05, False),
        Figure("D", "seam to step inside chunks", float(np.mean(seams)), 2, False),
    ]


def image_figures(subject: Subject, count: int) -> list[Figure]:
    """I2V: the first frame of a scene, and a caption of how it continues."""
    cases = draw_cases(subject, count, salt=8)
    frames = torch.stack([rendered(subject, case, 1) for case in cases])
    generator = Generator().manual_seed(0)
    anchor = subject.pictures.reference(frames, generator)
    still = frames.expand(-1, CHUNK_FRAMES, -1, -1, -1)
    past = subject.pictures.reference(still, generator)[:, :, -1:]
    seen = watch(subject, start(subject, cases, past, anchor), cases, 2)
    figures = score([case.scene for case in cases], [detect(video) for video in seen])
    return [
        Figure("D", f"image to video: {name}", figures[name], 0.9) for name in ("colour", "shape")
    ]


def video_figure(subject: Subject, count: int) -> Figure:
    """V2V: 66 frames of a scene, continued with its caption."""
    cases = draw_cases(subject, count, salt=9)
    frames = torch.stack([rendered(subject, case, 2 * CHUNK_FRAMES) for case in cases])
    generator = Generator().manual_seed(0)
    anchor = subject.pictures.reference(frames[:, :1], generator)
    parts = [
        subject.pictures.reference(part, generator)
        for part in torch.split(frames, CHUNK_FRAMES, dim=1)
    ]
    seen = watch(subject, start(subject, cases, torch.cat(parts, 2), anchor), cases, 2)
    figures = score([case.scene for case in cases], [detect(video) for video in seen])
    return Figure("D", "video to video: motion", figures["motion"], 0.85)


def switch_figure(subject: Subject, count: int) -> Figure:
    """Measure a prompt switch: after two chunks of one scene, look at its second chunk."""
    before, after = (draw_cases(subject, count, salt=salt) for salt in (10, 11))
    rollout = start(subject, before)
    for case_list in (before, before, after):
        rollout.next_chunk([case.caption for case in case_list])
    seen = watch(subject, rollout, after, 1)
    hits = [
        (found.background, found.colour) == (case.scene.background, case.scene.things[0].colour)
        for case, found in zip(after, map(detect, seen), strict=True)
    ]
    return Figure("D", "prompt switch seen in its second chunk", share(hits), 0.9)


def rendered(subject: Subject, case: Case, frames: int) -> Tensor:
    rng = np.random.default_rng(case.seed)
    recipe = subject.recipe
    clip = Clip((case.scene,), draw_starts(rng, recipe.grammar, case.scene, recipe.size))
    return torch.from_numpy(render(clip, frames, recipe.size))


def watch(subject: Subject, rollout: Rollout, cases: list[Case], chunks: int) -> list[Video]:
    """Generate and decode the next chunks of a rollout."""
    captions = [case.caption for case in cases]
    made = [subject.pictures.decode(rollout.next_chunk(captions)) for _ in range(chunks)]
    return list(torch.cat(made, dim=1).numpy())
