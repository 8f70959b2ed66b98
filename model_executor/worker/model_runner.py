"""Runs scheduled steps on one device: sessions in, finished chunks out."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from helios_serve.errors import HeliosError
from helios_serve.logger import logger
from helios_serve.messages import (
    NULL_BLOCK,
    ChunkBlocks,
    ChunkResult,
    NewSession,
    RunnerOutput,
    ScheduledStep,
    SchedulerOutput,
    SessionFailure,
    Snapshot,
)
from helios_serve.model_config import HISTORY_FRAMES, Geometry
from helios_serve.model_executor.loader import LoadedModel
from helios_serve.model_executor.lora_files import AdapterKey, adapter_key, load_adapter
from helios_serve.model_executor.models.helios.conditioning import (
    HistorySeed,
    block_noise_factor,
    draw_chunk_noise,
    seed_from_image,
    seed_from_video,
)
from helios_serve.model_executor.models.helios.inputs import TextContext
from helios_serve.model_executor.models.helios.lora import LoraAdapter
from helios_serve.model_executor.models.helios.samplers import (
    SamplerState,
    advance,
    enter_stage,
    unpatchify,
)
from helios_serve.model_executor.worker.history_pool import HistoryPool
from helios_serve.model_executor.worker.latents import as_message, dtype_name
from helios_serve.model_executor.worker.packed_batch import Job, PackedBatch
from helios_serve.model_executor.worker.prompt_reader import PromptReader
from helios_serve.model_executor.worker.session_state import ChunkState, SessionState
from helios_serve.sampling_params import (
    Frames,
    PromptWeight,
    VideoRequest,
    prompt_weights,
)

MAX_ADAPTERS = 8
"""LoRA adapters kept for the next session that names them."""


class ModelRunner:
    """The state of every session on one device, and the model that advances them."""

    def __init__(
        self, model: LoadedModel, num_blocks: int, *, batch_invariant: bool = False
    ) -> None:
        self.model = model
        self.batch_invariant = batch_invariant
        self.pool = HistoryPool(num_blocks, model.transformer.dtype, model.device)
        self.prompts = PromptReader(model.text_encoder, model.transformer)
        self.sessions: dict[str, SessionState] = {}
        self._adapters: OrderedDict[AdapterKey, LoraAdapter] = OrderedDict()
        self._noise_factor = block_noise_factor(model.config.scheduler.gamma)

    def execute_model(self, output: SchedulerOutput) -> RunnerOutput:
        """Close finished sessions, open new ones, take one step of each scheduled one.

        Whatever goes wrong with one session ends that session alone: it is reported as failed,
        and its later steps are passed over.
        """
        for session_id in output.finished:
            self.sessions.pop(session_id, None)
        failures: list[SessionFailure] = []
        for new in output.new_sessions:
            with self._isolated(new.session_id, failures):
                self.sessions[new.session_id] = self._open(new)
        jobs = []
        for step in output.scheduled_steps:
            if step.session_id in self.sessions:
                with self._isolated(step.session_id, failures):
                    jobs.append(self._prepare(step))
        self._denoise(jobs, failures)
        chunks = []
        for step in output.scheduled_steps:
            session = self.sessions.get(step.session_id)
            if session is not None and session.is_last_step(step.cursor):
                with self._isolated(step.session_id, failures):
                    chunks.append(self._finish_chunk(step, session))
        return RunnerOutput(tuple(chunks), tuple(failures))

    @contextmanager
    def _isolated(self, session_id: str, failures: list[SessionFailure]) -> Iterator[None]:
        """Turn any error into the failure of one session."""
        try:
            yield
        except Exception as error:  # whatever it is, it must not reach the other sessions
            self._fail(session_id, error, failures)

    def _fail(self, session_id: str, error: Exception, failures: list[SessionFailure]) -> None:
        if isinstance(error, HeliosError):
            message = str(error)
        else:
            message = f"{type(error).__name__}: {error}"
            logger.error("session %s failed", session_id, exc_info=error)
        self.sessions.pop(session_id, None)
        failures.append(SessionFailure(session_id, message))

    def _open(self, new: NewSession) -> SessionState:
        request = new.request
        session = SessionState(
            request=request,
            params=request.params.resolve(self.model.config),
            geometry=Geometry(request.params.height, request.params.width),
            adapter=self._adapter(request),
        )
        if new.snapshot is not None:
            self._restore(session, new.snapshot, new.blocks)
        elif (seed := self._seed_history(session)) is not None:
            self.pool.write(seed.anchor, new.blocks.window)
            self.pool.write(seed.frames, new.blocks.append)
            session.input_latents = seed.inputs if request.keep_input_latents else None
        return session

    def _restore(self, session: SessionState, snapshot: Snapshot, blocks: ChunkBlocks) -> None:
        held = dtype_name(self.pool.blocks.dtype)
        if snapshot.dtype != held:
            raise HeliosError(f"got a snapshot in {snapshot.dtype}, expected this worker's {held}")
        self.pool.restore(snapshot.anchor, blocks.window)
        self.pool.restore(snapshot.frames, blocks.append)
        session.generator.set_state(torch.frombuffer(bytearray(snapshot.rng), dtype=torch.uint8))

    def _snapshot(self, session: SessionState, blocks: ChunkBlocks, chunk: int) -> Snapshot:
        """Where the session stands behind `chunk`, whose frames lie in `blocks` already."""
        size = session.geometry.blocks_per_frame
        anchor, frames = blocks.window[:size], blocks.window[size:] + blocks.append
        if blocks.new_anchor:
            anchor = blocks.append[:size]
        kept = [block for block in frames[-HISTORY_FRAMES * size :] if block != NULL_BLOCK]
        return Snapshot(
            chunk=chunk + 1,
            rng=session.generator.get_state().numpy().tobytes(),
            anchor=self.pool.read(anchor),
            frames=self.pool.read(kept),
            dtype=dtype_name(self.pool.blocks.dtype),
        )

    def _adapter(self, request: VideoRequest) -> LoraAdapter | None:
        if request.lora is None:
            return None
        key = adapter_key(request.lora, request.lora_scale)
        if key not in self._adapters:
            adapter = load_adapter(request.lora, self.model.transformer, request.lora_scale)
            logger.info("%s: %d LoRA layers applied", request.lora, len(adapter.layers))
            self._adapters[key] = adapter
            if len(self._adapters) > MAX_ADAPTERS:
                self._adapters.popitem(last=False)
        self._adapters.move_to_end(key)
        return self._adapters[key]

    def _seed_history(self, session: SessionState) -> HistorySeed | None:
        request, generator = session.request, session.generator
        if request.image is not None:
            image = as_tensor(request.image)
            return seed_from_image(image, self.model.vae, generator, request.params)
        if request.video is not None:
            return seed_from_video(
                as_tensor(request.video),
                self.model.vae,
                generator,
                request.params,
                keep_inputs=request.keep_input_latents,
            )
        return None

    def _prepare(self, scheduled: ScheduledStep) -> Job:
        """Bring the session to the step's cursor: begin its chunk and its stage if they are new."""
        session = self.sessions[scheduled.session_id]
        chunk_index, stage, step = scheduled.cursor
        if scheduled.blocks is not None:
            session.chunk = self._begin_chunk(session, chunk_index, scheduled.blocks)
        assert session.chunk is not None, f"{scheduled.session_id} has no chunk to go on with"
        if step == 0 and stage > 0:
            self._enter_stage(session, session.chunk, stage)
        return Job(
            scheduled.session_id,
            session,
            session.chunk,
            stage,
            session.chunk.schedule[stage].steps[step],
        )

    def _begin_chunk(self, session: SessionState, index: int, blocks: ChunkBlocks) -> ChunkState:
        noise = draw_chunk_noise(
            session.generator, session.geometry, self.model.config.stages, self._noise_factor
        )
        params = session.params.params
        mix = prompt_weights(session.request.prompt, params, index)
        negative = (PromptWeight(params.negative_prompt, 1.0),)
        return ChunkState(
            blocks=blocks,
            window=torch.tensor(blocks.window, device=self.model.device),
            schedule=session.schedule(self.model.config, index),
            noise=noise,
            prompt=self._read(session, mix),
            negative=self._read(session, negative) if session.params.is_guided else None,
            sampler=SamplerState.at_stage_start(noise.start.to(self.model.device)),
        )

    def _read(self, session: SessionState, mix: tuple[PromptWeight, ...]) -> TextContext:
        return self.prompts.read(mix, session.params.params.max_sequence_length, session.adapter)

    def _enter_stage(self, session: SessionState, chunk: ChunkState, stage: int) -> None:
        transition = chunk.schedule[stage].transition
        assert transition is not None
        grid = session.geometry.stage_patches(stage - 1, self.model.config.stages)
        noise = chunk.noise.stages[stage - 1].to(self.model.device, self.model.transformer.dtype)
        latents = enter_stage(chunk.sampler.latents, grid, transition, noise)
        chunk.sampler = SamplerState.at_stage_start(latents)

    @torch.inference_mode()
    def _denoise(self, jobs: Sequence[Job], failures: list[SessionFailure]) -> None:
        """One packed forward for all jobs but the zero-init ones, then each one's sampler step."""
        running = [job for job in jobs if not job.step.skip_forward]
        skipped = [job for job in jobs if job.step.skip_forward]
        flows = self._flows(running) if running else []
        for job, flow in [*zip(running, flows, strict=True), *((job, None) for job in skipped)]:
            if isinstance(flow, Exception):
                self._fail(job.session_id, flow, failures)
                continue
            with self._isolated(job.session_id, failures):
                advance(job.chunk.sampler, job.step, flow)

    def _flows(self, jobs: Sequence[Job]) -> list[Tensor | Exception]:
        """Each job's flow, or the error that it alone runs into.

        A batch that does not fit in memory is halved; one that fails otherwise is run job by job.
        Nothing has changed when a forward fails, so it can be run again.
        """
        try:
            batch = PackedBatch(jobs, self.model.config, self.pool)
            return [*batch.flows(self.model.transformer, one_by_one=self.batch_invariant)]
        except Exception as error:  # narrowed down to the jobs that cause it
            if len(jobs) == 1:
                return [error]
            size = len(jobs) // 2 if isinstance(error, torch.OutOfMemoryError) else 1
            parts = [jobs[start : start + size] for start in range(0, len(jobs), size)]
            return [flow for part in parts for flow in self._flows(part)]

    def _finish_chunk(self, scheduled: ScheduledStep, session: SessionState) -> ChunkResult:
        """Store the chunk's frames in its blocks and take a snapshot."""
        assert session.chunk is not None
        index, blocks = scheduled.cursor.chunk, session.chunk.blocks
        latents = unpatchify(session.chunk.sampler.latents, session.geometry.patches)
        if not latents.isfinite().all():
            raise HeliosError(f"chunk {index} came out with NaN or infinity in its latents")
        self.pool.write(latents, blocks.append)
        inputs, session.input_latents, session.chunk = session.input_latents, None, None
        return ChunkResult(
            session_id=scheduled.session_id,
            chunk=index,
            latents=as_message(latents),
            snapshot=self._snapshot(session, blocks, index),
            input_latents=None if inputs is None else as_message(inputs),
        )


def as_tensor(frames: Frames) -> Tensor:
    """(count, height, width, 3), uint8."""
    flat = torch.frombuffer(bytearray(frames.data), dtype=torch.uint8)
    return flat.view(frames.count, frames.height, frames.width, 3)
