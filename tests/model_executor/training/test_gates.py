"""Gates measure correctly, on synthetic videos with known values and on a tiny training."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from helios_serve.errors import CheckpointError
from helios_serve.model_executor.training.gates.drift import (
    Case,
    Long,
    drift_figures,
    gate_d,
    mean_step,
)
from helios_serve.model_executor.training.gates.figure import Figure, as_table
from helios_serve.model_executor.training.gates.pictures import Pictures
from helios_serve.model_executor.training.gates.quality import gate_a, mean_decibels
from helios_serve.model_executor.training.probe import score
from helios_serve.model_executor.training.recipe import tiny_recipe
from helios_serve.model_executor.training.training import Training
from helios_serve.model_executor.training.vae_stage import as_frames
from helios_serve.model_executor.training.world.detectors import detect
from helios_serve.model_executor.training.world.renderer import render
from helios_serve.model_executor.training.world.scene import Clip, Scene, Thing

SCENE = Scene((Thing("red", "ball", "large", "right"),), "field")
CASE = Case(SCENE, "a large red ball moves right over the grass", 0)


def true_video(frames: int = 33) -> NDArray[np.uint8]:
    return render(Clip((SCENE,), ((10.0, 30.0),)), frames, (64, 64))


def drift_of(
    last: NDArray[np.uint8],
    *,
    spread: tuple[float, float] = (1.0, 1.0),
    seam: float = 1.0,
    inside: float = 1.0,
) -> dict[str, Figure]:
    """Return the figures of a video that begins correctly and ends with `last`."""
    long = Long(true_video(), last, spread, seam, inside)
    return {figure.name.split(",")[0]: figure for figure in drift_figures([CASE], [long])}


def test_a_true_video_does_not_drift() -> None:
    assert all(figure.passes for figure in drift_of(true_video()).values())


def test_each_kind_of_drift_is_seen() -> None:
    brighter = np.clip(true_video().astype(int) + 12, 0, 255).astype(np.uint8)
    assert drift_of(brighter)["mean colour"].value == pytest.approx(12, abs=0.5)
    assert drift_of(true_video(), spread=(1.0, 1.3))["latent deviation"].value == pytest.approx(0.3)
    assert drift_of(true_video()[::-1])["detection lost"].value == pytest.approx(0.25)
    assert drift_of(true_video(), seam=5.0, inside=2.0)["seam to step inside chunks"].value == 2.5


def test_a_step_is_the_mean_difference_of_frames() -> None:
    video = np.zeros((3, 4, 4, 3), dtype=np.uint8)
    video[1:] = 6
    assert mean_step(video) == 3.0


def test_scores_count_what_is_right() -> None:
    other = Scene((Thing("red", "square", "large", "left"),), "field")
    figures = score([SCENE, other], [detect(true_video())] * 2)
    assert figures == {
        "background": 1.0,
        "colour": 1.0,
        "shape": 0.5,
        "motion": 0.5,
        "one_object": 1.0,
        "speed": pytest.approx(1.0, abs=0.02),
    }


def test_decibels_are_averaged_as_errors() -> None:
    assert mean_decibels([30.0, 30.0]) == pytest.approx(30)
    assert mean_decibels([20.0, 40.0]) == pytest.approx(-10 * np.log10((1e-2 + 1e-4) / 2))


def test_the_table_says_what_misses() -> None:
    table = as_table([Figure("A", "x", 31, 30), Figure("D", "y", 3, 2, at_least=False)])
    assert "| A | x | 31 | >= 30 | passes |" in table
    assert "| D | y | 3 | <= 2 | MISSES |" in table


def test_an_untrained_model_misses_the_gates(training: Training) -> None:
    figures = gate_a(training.vae(), training.recipe, training.codec, chunks=2)
    assert [figure.passes for figure in figures] == [False, False]
    figures = gate_d(training.subject("distilled"), 2, training.folder / "d.png", chunks=3)
    assert len(figures) == 8
    assert (training.folder / "d.png").stat().st_size > 1000
    assert not all(figure.passes for figure in figures)


@pytest.mark.slow
def test_the_command_prints_the_figures_and_fails(training: Training) -> None:
    command = [sys.executable, "-m", "helios_serve.model_executor.training", "check"]
    command += ["--folder", str(training.folder), "--gates", "BC", "--videos", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "| B | motion |" in done.stdout
    assert "MISSES" in done.stdout
    assert (training.folder / "gates" / "c.png").exists()


def test_an_export_is_loaded_by_the_package(training: Training, tmp_path: Path) -> None:
    from helios_serve import Helios

    training.export("distilled", tmp_path / "nano")
    video = Helios(str(tmp_path / "nano")).generate(
        CASE.caption, width=64, height=64, num_frames=33, seed=1
    )
    assert video.frames.shape == (33, 64, 64, 3)


def test_the_package_has_the_student_that_is_named(training: Training, tmp_path: Path) -> None:
    for student in ("dmd", "ode"):
        Training(training.folder, student=student).package(tmp_path / student)
    files = {path.name for path in (tmp_path / "dmd").iterdir()}
    names = ("nano", "nano-mid", "nano-base", "vae", "codec")
    assert files == {f"{name}.safetensors" for name in names}
    same = {
        name: (tmp_path / "dmd" / name).read_bytes() == (tmp_path / "ode" / name).read_bytes()
        for name in files
    }
    assert [name for name, is_same in same.items() if not is_same] == ["nano.safetensors"]


def test_gates_see_what_diffusers_would_decode(training: Training) -> None:
    vae, latents = training.vae(), torch.randn(2, 16, 9, 8, 8, generator=torch.manual_seed(0))
    with torch.no_grad():
        expected = as_frames(vae.decode(latents).sample)
    shown = Pictures(vae).decode(latents)
    assert shown.shape == (2, 33, 64, 64, 3)
    assert int((shown.int() - expected.int()).abs().max()) <= 1


def test_unknown_gates_and_missing_stages_are_refused(training: Training, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="got gate 'E', expected letters of ABCD"):
        training.check("E", 1)
    with pytest.raises(CheckpointError, match=r"mid/state\.safetensors is missing"):
        Training(tmp_path, tiny_recipe()).check("B", 1)
