"""One denoise step on latent rows.

Latents are rows of base patches, (frames * rows * cols, 64) with channels last inside a row, the
order in which the transformer reads and writes them. Nothing is unpatchified before the VAE.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from helios_serve.kernels.registry import kernels_of
from helios_serve.model_config import LATENT_CHANNELS, PATCH_DIM, Grid
from helios_serve.model_executor.models.helios.schedule import DenoiseStep


@dataclass
class SamplerState:
    """The latents of a chunk in the making and what its solver remembers of the stage.

    `start` is the sample that the stage began with (DMD noises with it again); `corrected` the
    last corrected sample and `predictions` the last x0 predictions, newest last (UniPC).
    """

    latents: Tensor
    start: Tensor
    corrected: Tensor | None = None
    predictions: tuple[Tensor, ...] = ()

    @classmethod
    def at_stage_start(cls, latents: Tensor) -> "SamplerState":
        return cls(latents=latents, start=latents)


def patchify(latents: Tensor) -> Tensor:
    """(16, frames, height, width) in latent pixels -> rows of base patches."""
    channels, frames, height, width = latents.shape
    patches = latents.reshape(channels, frames, height // 2, 2, width // 2, 2)
    return patches.permute(1, 2, 4, 3, 5, 0).reshape(-1, PATCH_DIM)


def unpatchify(rows: Tensor, grid: Grid) -> Tensor:
    """Rows of base patches -> (16, frames, height, width) in latent pixels."""
    patches = rows.view(-1, grid.rows, grid.cols, 2, 2, LATENT_CHANNELS)
    return patches.permute(5, 0, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def guide(flow: Tensor, unguided: Tensor, scale: float, *, zero_star: bool) -> Tensor:
    """Classifier-free guidance; with `zero_star` the unconditional flow is first fitted.

    CFG-Zero* (arXiv 2503.18886) scales it by <c, u> / (|u|^2 + 1e-8), in fp32 over the chunk.
    """
    if zero_star:
        c, u = flow.float(), unguided.float()
        fit = (c * u).sum() / (u.square().sum() + 1e-8)
        unguided = unguided * fit.to(flow.dtype)
    return unguided + scale * (flow - unguided)


def advance(state: SamplerState, step: DenoiseStep, flow: Tensor | None) -> None:
    """Move `state` over one step; `flow` is None for a step whose forward is skipped."""
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
    """x0 in fp64, cast to the flow's dtype; then noised to the next level by the stage's start."""
    dmd_step = kernels_of(state.latents).dmd_step
    state.latents = dmd_step(state.latents, flow, state.start, step.sigma, step.next_sigma)


def advance_unipc(state: SamplerState, step: DenoiseStep, flow: Tensor) -> None:
    """Correct the sample with the new x0 prediction, then predict the next one."""
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
    """The sum of weight * tensor; a term of weight 0 may lack its tensor."""
    present = [(weight, tensor) for weight, tensor in terms if weight != 0]
    total: Tensor | None = None
    for weight, tensor in present:
        assert tensor is not None, "a step of higher order came before the solver was warm"
        total = weight * tensor if total is None else total.add(tensor, alpha=weight)
    assert total is not None
    return total
