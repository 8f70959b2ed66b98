"""Stages of the training: they learn, resume to the same losses, and refuse damaged states."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import torch

from helios_serve.errors import CheckpointError
from helios_serve.model_executor.training.distillation.dmd_stage import DmdStage
from helios_serve.model_executor.training.flow_stage import FlowStage
from helios_serve.model_executor.training.recipe import Recipe, Steps, tiny_recipe, write_recipe
from helios_serve.model_executor.training.training import Training

STAGES = ("vae", "base", "mid", "ode", "dmd")


def link_all_but(stage: str, source: Path, folder: Path) -> None:
    """Give `folder` everything of a training but one stage."""
    for path in source.iterdir():
        if path.name != stage:
            (folder / path.name).symlink_to(path)


def curve(folder: Path, stage: str) -> list[dict[str, float]]:
    """Return the figures of each step in the log, without the time."""
    lines = [json.loads(line) for line in (folder / stage / "log.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in line if key != "cpu_seconds"} for line in lines]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_stops_at_its_budget_continues_the_same_curve(
    training: Training, tmp_path: Path, stage: str
) -> None:
    link_all_but(stage, training.folder, tmp_path)
    runs = 0
    while not Training(tmp_path).run(stage, cpu_seconds=0):
        runs += 1
    steps: int = getattr(training.recipe.steps, stage)
    assert runs == steps - 1
    assert curve(tmp_path, stage) == curve(training.folder, stage)
    assert len(curve(tmp_path, stage)) == steps


@pytest.mark.slow
def test_a_killed_training_resumes_to_the_same_curve(tmp_path: Path) -> None:
    """SIGKILL between two saved states: the steps after the first of them are run again."""
    recipe = msgspec.structs.replace(
        tiny_recipe(), steps=msgspec.structs.replace(tiny_recipe().steps, base=40), save_every=7
    )
    write_recipe(tmp_path / "recipe.json", recipe)
    command = [sys.executable, "-c", KILLED, "base"]
    command += ["--folder", str(tmp_path / "killed"), "--recipe", str(tmp_path / "recipe.json")]
    done = subprocess.run(command, env=os.environ | {"PYTHONSAFEPATH": "1"}, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(curve(tmp_path / "killed", "base")) == 17
    torch.set_num_threads(1)
    assert Training(tmp_path / "killed").run("base")
    whole = Training(tmp_path / "whole", recipe)
    assert whole.run("base")
    assert curve(tmp_path / "killed", "base") == curve(tmp_path / "whole", "base")


KILLED = """
import os, runpy, signal
from unittest import mock
from helios_serve.model_executor.training import loop

def report(stage, line):
    if line["step"] == 17:
        os.kill(os.getpid(), signal.SIGKILL)

with mock.patch.object(loop, "report", report):
    runpy.run_module("helios_serve.model_executor.training", run_name="__main__")
"""


def test_a_damaged_state_is_refused_by_name(training: Training, tmp_path: Path) -> None:
    link_all_but("base", training.folder, tmp_path)
    state = tmp_path / "base" / "state.safetensors"
    state.parent.mkdir()
    content = (training.folder / "base" / "state.safetensors").read_bytes()
    state.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"base/state\.safetensors is .*damaged"):
        Training(tmp_path).run("base")
    with pytest.raises(CheckpointError, match=r"base/state\.safetensors is .*damaged"):
        Training(tmp_path).run("mid")


def test_a_state_of_another_recipe_is_refused(training: Training, tmp_path: Path) -> None:
    recipe = training.recipe
    other = msgspec.structs.replace(recipe, transformer=recipe.transformer | {"ffn_dim": 64})
    state = tmp_path / "base" / "state.safetensors"
    state.parent.mkdir()
    state.write_bytes((training.folder / "base" / "state.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match=r"state\.safetensors does not fit the recipe"):
        Training(tmp_path, other).run("base")
    with pytest.raises(CheckpointError, match=r"recipe\.json differs from the given recipe"):
        Training(training.folder, other)


def test_losses_fall(tmp_path: Path) -> None:
    """On the same tiny pool: a model that learns nothing stays at a loss of 1."""
    recipe: Recipe = msgspec.structs.replace(
        tiny_recipe(), steps=msgspec.structs.replace(tiny_recipe().steps, base=60), batch=6
    )
    training = Training(tmp_path, recipe)
    assert training.run("base")
    losses = [line["loss"] for line in curve(tmp_path, "base")]
    assert sum(losses[:5]) / 5 > 0.9
    assert sum(losses[-10:]) / 10 < 0.75


def test_a_training_starts_from_another_at_a_larger_size(
    training: Training, tmp_path: Path
) -> None:
    """With its codec and weights, so that the first losses are those of a trained model."""
    recipe = msgspec.structs.replace(training.recipe, width=128, start=str(training.folder))
    larger = Training(tmp_path, recipe)
    stage = larger.makers["base"]()
    assert isinstance(stage, FlowStage)
    weights = dict(stage.model.named_parameters())
    assert all(torch.equal(weights[name], item) for name, item in training.average("base").items())
    assert torch.equal(larger.codec.components, training.codec.components)
    assert stage.pool.latents.shape[-2:] == (8, 16)
    assert not (tmp_path / "codec.safetensors").exists()


def test_a_continued_training_keeps_the_stages_that_it_does_not_run(
    training: Training, tmp_path: Path
) -> None:
    """Their weights are those of its origin, and a student goes on where the origin's stopped."""
    steps = Steps(vae=0, base=2, mid=0, ode=0, dmd=1)
    recipe = msgspec.structs.replace(training.recipe, start=str(training.folder), steps=steps)
    continued = Training(tmp_path / "second", recipe)
    for stage in STAGES:
        assert continued.run(stage)
    assert {path.name for path in continued.folder.iterdir() if path.is_dir()} == {
        "base",
        "dmd",
        "pool",
    }
    for stage in STAGES:
        own, old = continued.average(stage), training.average(stage)
        same = all(torch.equal(own[name], old[name]) for name in old)
        assert same == (stage not in ("base", "dmd"))
    recipe = msgspec.structs.replace(
        recipe, start=str(continued.folder), steps=Steps(vae=0, base=0, mid=0, ode=0, dmd=1)
    )
    third = Training(tmp_path / "third", recipe)
    distilling = third.makers["dmd"]()
    assert isinstance(distilling, DmdStage)
    student = dict(distilling.model.named_parameters())
    assert all(torch.equal(student[name], item) for name, item in continued.average("dmd").items())
    assert torch.equal(third.codec.components, training.codec.components)
