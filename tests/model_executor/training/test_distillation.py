"""Distillation: levels, pairs, gradients and memory."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from helios_serve.errors import CheckpointError
from helios_serve.model_executor.models.helios.samplers import SamplerState, advance
from helios_serve.model_executor.models.helios.schedule import denoise_schedule
from helios_serve.model_executor.training.distillation.dmd_stage import (
    REGRESSION_KNEE,
    DmdStage,
    regression_loss,
)
from helios_serve.model_executor.training.distillation.ode_stage import OdeStage
from helios_serve.model_executor.training.distillation.teacher_pairs import make_pairs
from helios_serve.model_executor.training.flow_stage import draw_batch
from helios_serve.model_executor.training.nano_model import NanoModel
from helios_serve.model_executor.training.training import Training
from helios_serve.model_executor.training.windows import full_window


def dmd_stage(training: Training, **changes: object) -> DmdStage:
    recipe = msgspec.structs.replace(training.recipe, **changes)
    weights = training.average("mid")
    return DmdStage(
        recipe,
        training.pool,
        training.codec,
        student=weights,
        teacher=training.average(recipe.teacher),
    )


def test_the_student_learns_at_the_levels_that_it_is_served_at(training: Training) -> None:
    stage = OdeStage(training.recipe, training.pairs, training.codec, training.average("mid"))
    schedule = denoise_schedule(stage.config, training.recipe.geometry, (2, 2, 2))
    for plans, served in zip(stage.levels, schedule, strict=True):
        assert [level.timestep for level in plans[0]] == [step.timestep for step in served.steps]
        assert [level.sigma for level in plans[0]] == [step.sigma for step in served.steps]
        assert [len(plan) for plan in plans] == [2, 1, 4]


def test_a_perfect_student_reaches_the_end_of_a_stage(training: Training) -> None:
    """The served sampler, with the flow that ODE regression teaches, ends where the teacher did."""
    stage = OdeStage(training.recipe, training.pairs, training.codec, training.average("mid"))
    schedule = denoise_schedule(stage.config, training.recipe.geometry, (2, 2, 2))
    for (start, end), served in zip(training.pairs.batch(0).stages, schedule, strict=True):
        state = SamplerState.at_stage_start(start)
        for step in served.steps:
            advance(state, step, start - end)
        assert (state.latents - end).abs().max() < 0.01 * float(end.abs().max())


def test_pairs_continue_the_teachers_own_chunks(training: Training) -> None:
    first, second = training.pairs.batch(0), training.pairs.batch(1)
    assert first.captions == second.captions
    rows = first.stages[-1].end
    grid = training.recipe.geometry.patches
    latents = rows.view(len(rows), 9, grid.rows, grid.cols, 2, 2, 16).permute(0, 6, 1, 2, 4, 3, 5)
    chunk = latents.reshape(len(rows), 16, 9, 8, 8)
    past = torch.cat([first.window[:, :, 1:], chunk], dim=2)
    assert torch.equal(second.window[:, :, 1:], full_window(past)[:, :, 1:])
    is_first = first.window[:, :, :1].abs().amax(dim=(1, 2, 3, 4), keepdim=True) == 0
    anchor = torch.where(is_first, chunk[:, :, :1], first.window[:, :, :1])
    assert torch.equal(second.window[:, :, :1], anchor)


def test_interrupted_pairs_go_on_and_equal_uninterrupted_ones(
    training: Training, tmp_path: Path
) -> None:
    teacher = NanoModel(training.recipe)
    teacher.load_state_dict(training.average("mid"), strict=False)
    make_pairs(training.recipe, training.pool, teacher, tmp_path)
    names = tmp_path / "captions.jsonl"
    names.write_text("".join(names.read_text().splitlines(keepends=True)[:1]))
    again = make_pairs(training.recipe, training.pool, teacher, tmp_path)
    assert again.captions == training.pairs.captions
    assert np.array_equal(again.rows, training.pairs.rows)
    names.write_text("[")
    with pytest.raises(CheckpointError, match=r"captions\.jsonl is damaged"):
        make_pairs(training.recipe, training.pool, teacher, tmp_path)
    names.unlink()
    (tmp_path / "pairs.float16").write_bytes(b"short")
    with pytest.raises(CheckpointError, match=r"pairs\.float16: got 5 bytes, expected"):
        make_pairs(training.recipe, training.pool, teacher, tmp_path)


def gradients(stage: DmdStage) -> list[Tensor]:
    """Return the gradients of the generator's first step, before they are applied."""
    taken: list[Tensor] = []

    def keep(*_: object) -> float:
        for parameter in stage.model.parameters():
            taken.append(torch.zeros(()) if parameter.grad is None else parameter.grad.clone())
        return 0.0

    stage.optimizer.step = keep  # type: ignore[method-assign, assignment]
    stage.train_generator(np.random.default_rng(0), 0, 1.0)
    return taken


@contextmanager
def saved_bytes(most: list[int]) -> Iterator[None]:
    """Append to `most` the largest number of bytes that autograd saved at one time."""
    alive = [0]
    most.append(0)

    class Kept:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor
            alive[0] += tensor.nbytes
            most[-1] = max(most[-1], alive[0])

        def __del__(self) -> None:
            alive[0] -= self.tensor.nbytes

    unpack: Callable[[Kept], Tensor] = lambda kept: kept.tensor  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(Kept, unpack):
        yield


def test_little_memory_gives_the_same_gradients(training: Training) -> None:
    """It saves less than half: the activations of one step instead of six."""
    most: list[int] = []
    taken = []
    for low_memory in (False, True):
        stage = dmd_stage(training, low_memory=low_memory)
        with saved_bytes(most):
            taken.append(gradients(stage))
    naive, little = taken
    assert any(gradient.abs().sum() > 0 for gradient in naive)
    for first, second in zip(naive, little, strict=True):
        assert torch.allclose(first, second, rtol=1e-4, atol=1e-8)
    assert most[1] < 0.5 * most[0]


@pytest.mark.parametrize(("teacher", "at"), [("base", 0), ("mid", 0), ("mid", 1), ("mid", 2)])
def test_matching_pulls_towards_the_real_score(
    training: Training, teacher: Literal["base", "mid"], at: int
) -> None:
    """Without an adversary, the gradient of the latents is fake minus real, over their distance."""
    stage = dmd_stage(training, teacher=teacher)
    batch, latents, _ = stage.generate(np.random.default_rng(0), with_gradient=False)
    leaf = latents.clone().requires_grad_()
    view = stage.view(leaf, at, torch.Generator().manual_seed(0))
    matching, _ = stage.generator_losses(view, batch)
    torch.autograd.backward(matching)
    with torch.no_grad():
        real = view.predicted(stage.real_flow(view, batch))
        fake = view.predicted(stage.scores(view, batch).flow)
    scale = 2 ** (len(stage.ranges) - 1 - at)  # a pixel of the view is the mean of scale x scale
    assert view.clean.shape[-2:] == (8 // scale, 8 // scale)
    size = (view.clean - real).abs().mean(dim=(1, 2, 3, 4), keepdim=True)
    expected = (fake - real) / size / view.clean.numel() / scale**2
    for axis in (-1, -2):
        expected = expected.repeat_interleave(scale, dim=axis)
    assert leaf.grad is not None
    assert torch.allclose(leaf.grad, expected.detach(), atol=1e-9, rtol=1e-4)


@pytest.mark.parametrize("teacher", ["base", "mid"])
def test_the_true_flow_leads_to_the_clean_latents(
    training: Training, teacher: Literal["base", "mid"]
) -> None:
    stage = dmd_stage(training, teacher=teacher)
    latents = torch.randn(2, 16, 9, 8, 8)
    for at in range(len(stage.ranges)):
        view = stage.view(latents, at, torch.Generator().manual_seed(0))
        assert torch.allclose(view.predicted(view.noisy.flow), view.clean, atol=1e-4)
    drawn = {stage.draw_stage(np.random.default_rng(seed)) for seed in range(20)}
    assert drawn == set(range(len(stage.ranges)))


def test_the_critic_learns_and_leaves_the_generator_alone(training: Training) -> None:
    stage = dmd_stage(training)
    before = [parameter.clone() for parameter in stage.model.parameters()]
    rng = np.random.default_rng(0)
    told = [stage.train_critic(rng, index, 1.0)["telling"] for index in range(12)]
    assert all(
        torch.equal(old, new) for old, new in zip(before, stage.model.parameters(), strict=True)
    )
    assert np.mean(told[-3:]) < np.mean(told[:3])
    assert all(not parameter.requires_grad for parameter in stage.real.parameters())


def test_a_chunk_is_known_after_a_real_history_only(training: Training) -> None:
    """Then the batch's target is what follows; after an empty or a generated one it is not."""
    rng = np.random.default_rng(0)
    own = dmd_stage(training, own_history=1.0, dmd_batch=12).generate(rng, with_gradient=False)
    assert not own.known.any()
    assert (own.batch.window != 0).flatten(1).any(dim=1).all()
    real = dmd_stage(training, own_history=0.0, dmd_batch=12).generate(rng, with_gradient=False)
    present = (real.batch.window != 0).flatten(1).any(dim=1)
    assert torch.equal(real.known, present)
    assert 0 < int(present.sum()) < len(present)


def test_regression_pulls_towards_the_true_chunk() -> None:
    latents = torch.randn(3, 16, 9, 8, 8, requires_grad=True)
    target = latents.detach() + torch.tensor([5.0, -5.0, 5.0]).view(-1, 1, 1, 1, 1)
    loss = regression_loss(latents, target, torch.tensor([True, True, False]))
    assert float(loss.detach()) == pytest.approx((5 - REGRESSION_KNEE / 2) * 2 / 3, rel=1e-4)
    (gradient,) = torch.autograd.grad(loss, latents)
    assert (gradient[0] < 0).all()
    assert (gradient[1] > 0).all()
    assert not gradient[2].any()


def test_the_student_is_trained_at_two_steps_and_at_one(training: Training) -> None:
    stage = dmd_stage(training)
    counts = [[len(served.steps) for served in rollout.schedule] for rollout in stage.rollouts]
    assert counts == [[2, 2, 2], [1, 1, 1]]
    first, second = (
        stage.denoise(rollout, draw_batch(rng, training.pool, stage.recipe), rng)
        for rollout, rng in ((item, np.random.default_rng(0)) for item in stage.rollouts)
    )
    assert not torch.equal(first, second)
