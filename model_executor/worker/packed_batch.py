"""Runs the steps of several sessions as one packed forward."""

from collections.abc import Sequence
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


class Job(NamedTuple):
    """One denoise step of one session in a batch."""

    session_id: str
    session: SessionState
    chunk: ChunkState
    stage: int
    step: DenoiseStep


class PackedBatch:
    """The pack segments of several jobs: one per job, or two with guidance.

    The second one has the negative prompt. `packs` are the segments of each forward: all of them in
    one, or with `one_by_one` each alone, so that results are bitwise independent of the batch.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        config: HeliosConfig,
        pool: HistoryPool,
        *,
        one_by_one: bool = False,
    ) -> None:
        self.jobs = jobs
        self.config = config
        self.segments = [segment for job in jobs for segment in self._segments_of(job, pool)]
        self.packs = [[item] for item in self.segments] if one_by_one else [self.segments]

    def guided_flows(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        """Return the guided flow of each job, (tokens, 64), from the output of each pack's forward.

        Outputs are (tokens of all segments of the pack, 64).
        """
        parts = [
            part
            for pack, output in zip(self.packs, outputs, strict=True)
            for part in torch.split(output, [len(item.noise) for item in pack])
        ]
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
