"""Runs the steps of several sessions as one packed forward."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from helios_serve.model_config import HeliosConfig
from helios_serve.model_executor.models.helios.embeddings import make_rope
from helios_serve.model_executor.models.helios.inputs import PackSegment
from helios_serve.model_executor.models.helios.samplers import guide
from helios_serve.model_executor.models.helios.schedule import DenoiseStep
from helios_serve.model_executor.worker.history_pool import HistoryPool
from helios_serve.model_executor.worker.session_state import ChunkState, SessionState

Transformer = Callable[[Sequence[PackSegment]], Tensor]
"""Returns the flow of segments, concatenated: (noise tokens, 64)."""


class Job(NamedTuple):
    """One denoise step of one session in a batch."""

    session_id: str
    session: SessionState
    chunk: ChunkState
    stage: int
    step: DenoiseStep


class PackedBatch:
    """The pack segments of several jobs: one per job, or two with guidance.

    The second one has the negative prompt.
    """

    def __init__(self, jobs: Sequence[Job], config: HeliosConfig, pool: HistoryPool) -> None:
        self.jobs = jobs
        self.config = config
        self.segments = [segment for job in jobs for segment in self._segments_of(job, pool)]

    def flows(self, transformer: Transformer, *, one_by_one: bool = False) -> list[Tensor]:
        """Return the guided flow of each job, (tokens, 64), from one forward over all segments.

        With `one_by_one` each segment runs alone, so that results are bitwise independent of the
        batch.
        """
        if one_by_one:
            parts = [transformer([segment]) for segment in self.segments]
        else:
            sizes = [len(item.noise) for item in self.segments]
            parts = list(torch.split(transformer(self.segments), sizes))
        return [self._guided(job, parts) for job in self.jobs]

    def _segments_of(self, job: Job, pool: HistoryPool) -> list[PackSegment]:
        session, chunk = job.session, job.chunk
        texts = [chunk.prompt] if chunk.negative is None else [chunk.prompt, chunk.negative]
        noise = chunk.sampler.latents
        history = pool.gather(chunk.window, session.geometry)
        rope = make_rope(
            self.config.transformer,
            session.geometry,
            job.stage,
            self.config.stages,
            noise.device,
        )
        return [
            PackSegment(history, noise, rope, job.step.timestep, text, session.adapter)
            for text in texts
        ]

    def _guided(self, job: Job, parts: list[Tensor]) -> Tensor:
        """Remove the job's flows from the front of `parts` and return their guided combination."""
        flow = parts.pop(0)
        if job.chunk.negative is None:
            return flow
        scale = job.session.params.guidance_scale
        return guide(flow, parts.pop(0), scale, zero_star=self.config.cfg_zero_star)
