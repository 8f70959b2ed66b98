"""Sessions into one packed forward, and its flow back to the sessions."""

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
"""Flow rows of some segments, end to end."""


class Job(NamedTuple):
    """One session's step within a batch."""

    session_id: str
    session: SessionState
    chunk: ChunkState
    stage: int
    step: DenoiseStep


class PackedBatch:
    """The segments of some jobs: one each, or two where guidance needs the negative prompt too."""

    def __init__(self, jobs: Sequence[Job], config: HeliosConfig, pool: HistoryPool) -> None:
        self.jobs = jobs
        self.config = config
        self.segments = [segment for job in jobs for segment in self._segments_of(job, pool)]

    def flows(self, transformer: Transformer, *, one_by_one: bool = False) -> list[Tensor]:
        """The guided flow rows of every job, from one forward over all segments.

        `one_by_one` runs each segment alone, which repeats bitwise whatever the batch.
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
        """Take the job's own flows from the front of `parts`."""
        flow = parts.pop(0)
        if job.chunk.negative is None:
            return flow
        scale = job.session.params.guidance_scale
        return guide(flow, parts.pop(0), scale, zero_star=self.config.cfg_zero_star)
