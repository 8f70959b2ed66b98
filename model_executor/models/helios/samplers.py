"""Sampler steps (UniPC, Euler, DMD) and guidance on latent rows.

Latents are rows of base patches, (frames * rows * cols, 64) with channels last in a row: the layout
that the transformer reads and writes. They are unpatchified only when a chunk is finished.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from helios_serve.kernels.registry import kernels_of
from helios_serve.model_config import LATENT_CHANNELS, PATCH_DIM, Grid
from helios_serve.model_executor.models.helios.schedule import DenoiseStep


@dataclass
class SamplerState:
    """The latents of a chunk that is being denoised, and the solver's state in the current stage.

    - `latents`: the current sample, (tokens, 64).
    - `start`: the sample at the start of the stage, which DMD uses as noise.
    - `corrected`: the last corrected sample (UniPC).
    - `predictions`: up to two previous x0 predictions, the newest last (UniPC).
    """

    latents: Tensor
    start: Tensor
    corrected: Tensor | None = None
    predictions: tuple[Tensor, ...] = ()

    @classmethod
    def at_stage_start(cls, latents: Tensor) -> "SamplerState":
        return cls(latents=latents, start=latents)


def patchify(latents: Tensor) -> Tensor:
    """(16, frames, height, width) in latent pixels -> rows of base patches (patches, 64)."""
    channels, frames, height, width = latents.shape
    patches = latents.reshape(channels, frames, height // 2, 2, width // 2, 2)
    return patches.permute(1, 2, 4, 3, 5, 0).reshape(-1, PATCH_DIM)


def unpatchify(rows: Tensor, grid: Grid) -> Tensor:
    """Rows of base patches (patches, 64) -> (16, frames, height, width) in latent pixels."""
    patches = rows.view(-1, grid.rows, grid.cols, 2, 2, LATENT_CHANNELS)
    return patches.permute(5, 0, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def guide(flow: Tensor, unguided: Tensor, scale: float, *, zero_star: bool) -> Tensor:
    """Apply classifier-free guidance to the conditional `flow` and the `unguided` flow.

    With `zero_star` (CFG-Zero*, arXiv 2503.18886) the unguided flow u is first scaled by
    <c, u> / (|u|^2 + 1e-8), computed in fp32 over the chunk, where c is the conditional flow.
    """
    if zero_star:
        c, u = flow.float(), unguided.float()
        fit = (c * u).sum() / (u.square().sum() + 1e-8)
        unguided = unguided * fit.to(flow.dtype)
    return unguided + scale * (flow - unguided)


def advance(state: SamplerState, step: DenoiseStep, flow: Tensor | None) -> None:
    """Advance `state` by one step. A `flow` of None, for a skipped forward, counts as zero."""
    if flow is None:
        flow = torch.zeros_like(state.latents)
    match step.solver:
        case "unipc":
            advance_unipc(state, step, flow)
        case "dmd":
            advance_dmd(state, step, flow)
        case "euler":
            assert step.next_sigma is not None
            state.latents = state.latents + (step.next_sigma - step.sigma) * flow


def advance_dmd(state: SamplerState, step: DenoiseStep, flow: Tensor) -> None:
    """Predict x0 in fp64, then add noise, the stage's start, up to the next level."""
    dmd_step = kernels_of(state.latents).dmd_step
    state.latents = dmd_step(state.latents, flow, state.start, step.sigma, step.next_sigma)


def advance_unipc(state: SamplerState, step: DenoiseStep, flow: Tensor) -> None:
    """Correct the sample with the new x0 prediction, then predict the next sample."""
    assert step.unipc is not None
    corrector, predictor = step.unipc
    current = state.latents - step.sigma * flow
    older, previous = (None, None, *state.predictions)[-2:]
    sample = state.latents
    if corrector is not None:
        sample = weighted(
            (corrector.sample, state.corrected),
            (corrector.older, older),
            (corrector.previous, previous),
            (corrector.current, current),
        )
    state.corrected = sample
    state.predictions = (*state.predictions[-1:], current)
    state.latents = weighted(
        (predictor.sample, sample), (predictor.previous, previous), (predictor.current, current)
    )


def weighted(*terms: tuple[float, Tensor | None]) -> Tensor:
    """Return the sum of weight * tensor. The tensor may be None if its weight is 0."""
    present = [(weight, tensor) for weight, tensor in terms if weight != 0]
    total: Tensor | None = None
    for weight, tensor in present:
        assert tensor is not None, "this order needs more predictions than there are"
        total = weight * tensor if total is None else total.add(tensor, alpha=weight)
    assert total is not None
    return total
