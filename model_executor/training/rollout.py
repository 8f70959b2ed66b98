"""Generates videos with the dense forward: many at once, chunk after chunk, as they are served.

Noise, schedule and sampler are the product's own, so a rollout equals what the server makes.
"""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor
from torch.utils.checkpoint import checkpoint

from helios_serve.kernels.reference import enter_stage
from helios_serve.model_config import CHUNK_LATENTS, HISTORY_FRAMES, Geometry, HeliosConfig
from helios_serve.model_executor.models.helios.conditioning import (
    ChunkNoise,
    block_noise_factor,
    draw_chunk_noise,
)
from helios_serve.model_executor.models.helios.embeddings import make_rope
from helios_serve.model_executor.models.helios.samplers import SamplerState, advance, guide
from helios_serve.model_executor.models.helios.schedule import denoise_schedule
from helios_serve.model_executor.training.dense import DenseHistory, dense_forward
from helios_serve.model_executor.training.nano_model import NanoModel
from helios_serve.model_executor.training.noising import Endpoints
from helios_serve.model_executor.training.text_rows import TextRows
from helios_serve.model_executor.training.windows import (
    ablated,
    empty_window,
    full_window,
    unpatch_rows,
    window_patches,
)

ZERO_INIT_STEPS = 2
"""Steps that CFG-Zero* zeroes, as the product's defaults have it."""


class Rollout:
    """Videos that grow by a chunk at a time.

    - `seeds`: one per video.
    - `steps`: denoise steps of each stage.
    - `guidance`: the scale of classifier-free guidance; at most 1 turns it off.
    - `zero_init`: steps that CFG-Zero* zeroes, where the checkpoint has it.
    - `recompute`: with gradients, keep only the inputs of each step and run it again in backward.
    - `past`: history to start from, (videos, 16, frames, h, w), with its `anchor`.
    """

    def __init__(
        self,
        model: NanoModel,
        config: HeliosConfig,
        geometry: Geometry,
        *,
        seeds: Sequence[int],
        steps: tuple[int, ...],
        guidance: float = 1.0,
        zero_init: int = ZERO_INIT_STEPS,
        recompute: bool = False,
        past: Tensor | None = None,
        anchor: Tensor | None = None,
    ) -> None:
        self.model = model
        self.config = config
        self.geometry = geometry
        self.generators = [Generator().manual_seed(seed) for seed in seeds]
        self.guidance = guidance
        self.past = past
        self.anchor = anchor
        self.recompute = recompute
        self.chunks = 0
        skipped = zero_init if config.cfg_zero_star and guidance > 1 else 0
        self.schedule = denoise_schedule(config, geometry, steps, skipped)
        self._factor = block_noise_factor(config.scheduler.gamma)

    @torch.no_grad()
    def next_chunk(self, captions: Sequence[str]) -> Tensor:
        """Generate the next chunk of each video: latents (videos, 16, 9, h, w)."""
        noises = [
            draw_chunk_noise(generator, self.geometry, self.config.stages)
            for generator in self.generators
        ]
        text = self.model.encode(captions)
        if self.guidance > 1:
            text = both(text, self.model.encode([""] * len(captions)))
        latents = self.denoise(self.window(), text, noises)
        self.chunks += 1
        self.past = latents if self.past is None else torch.cat([self.past, latents], dim=2)
        self.past = self.past[:, :, -HISTORY_FRAMES:]
        if self.anchor is None:
            self.anchor = latents[:, :, :1]
        return latents

    def window(self) -> Tensor:
        """Return the window of the next chunk: (videos, 16, 20, h, w)."""
        if self.past is None:
            height, width = self.geometry.latent_size
            return empty_window(torch.zeros(len(self.generators), 16, 1, height, width))
        return ablated(full_window(self.past, self.anchor), self.model.ablation)

    def denoise(
        self,
        window: Tensor,
        text: TextRows,
        noises: Sequence[ChunkNoise],
        *,
        path: list[Endpoints] | None = None,
    ) -> Tensor:
        """Denoise a chunk stage by stage, as the product does for one session.

        The latent rows at both ends of each stage are appended to `path`, (videos, tokens, 64)
        each. Gradients flow through all steps, unless they are disabled.
        """
        history = window_patches(window)
        state = SamplerState.at_stage_start(torch.stack([noise.start for noise in noises]))
        for stage, (transition, steps) in enumerate(self.schedule):
            if transition is not None:
                grid = self.geometry.stage_patches(stage - 1, self.config.stages)
                entered = [
                    enter_stage(
                        rows, grid, transition, noise.stages[stage - 1], self._factor, rows.dtype
                    )
                    for rows, noise in zip(state.latents, noises, strict=True)
                ]
                state = SamplerState.at_stage_start(torch.stack(entered))
            start = state.latents
            for step in steps:
                flow = None
                if not step.skip_forward:
                    flow = self.flow(state.latents, history, text, step.timestep, stage)
                advance(state, step, flow)
            if path is not None:
                path.append(Endpoints(start, state.latents))
        return unpatch_rows(state.latents, self.geometry.patches)

    def flow(
        self, rows: Tensor, history: DenseHistory, text: TextRows, timestep: float, stage: int
    ) -> Tensor:
        """Return the guided flow of rows (videos, tokens, 64)."""
        count = len(rows)
        rope = make_rope(
            self.model.transformer.config, self.geometry, stage, self.config.stages, rows.device
        )
        if self.guidance > 1:
            rows = torch.cat([rows, rows])
            history = DenseHistory(*(torch.cat([part, part]) for part in history))
        times = torch.full((len(rows),), timestep)
        offsets = None
        if self.model.ablation == "rope":
            offsets = [CHUNK_LATENTS * self.chunks] * len(rows)
        inputs = (self.model.transformer, history, rows, times, text, rope, offsets)
        if self.recompute and torch.is_grad_enabled():
            flow: Tensor = checkpoint(dense_forward, *inputs, use_reentrant=False)
        else:
            flow = dense_forward(*inputs)
        if self.guidance <= 1:
            return flow
        pairs = zip(flow[:count], flow[count:], strict=True)
        zero_star = self.config.cfg_zero_star
        return torch.stack([guide(c, u, self.guidance, zero_star=zero_star) for c, u in pairs])


def both(first: TextRows, second: TextRows) -> TextRows:
    """Join two batches of prompts of different lengths."""
    longest = max(first.rows.shape[1], second.rows.shape[1])
    padded = [pad_text(text, longest) for text in (first, second)]
    return TextRows(*(torch.cat(parts) for parts in zip(*padded, strict=True)))


def pad_text(text: TextRows, rows: int) -> TextRows:
    missing = rows - text.rows.shape[1]
    hidden = torch.nn.functional.pad(text.bias, (0, missing), value=-1e4)
    return TextRows(torch.nn.functional.pad(text.rows, (0, 0, 0, missing)), hidden)
