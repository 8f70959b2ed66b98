"""The model runner, which executes plans: it holds the sessions of a device and advances them."""

import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Generator, Tensor

from helios_serve.errors import HeliosError
from helios_serve.kernels.registry import kernels_of
from helios_serve.kernels.rows import upload
from helios_serve.logger import logger
from helios_serve.messages import (
    NULL_BLOCK,
    ChunkBlocks,
    ChunkStart,
    NewSession,
    RunnerOutput,
    ScheduledStep,
    SchedulerOutput,
    SessionFailure,
    Snapshot,
)
from helios_serve.model_config import HISTORY_FRAMES, Geometry, HeliosConfig
from helios_serve.model_executor.device import current_device
from helios_serve.model_executor.lora_files import AdapterKey, adapter_key, load_adapter
from helios_serve.model_executor.models.helios.conditioning import (
    ChunkNoise,
    block_noise_factor,
    draw_chunk_noise,
)
from helios_serve.model_executor.models.helios.inputs import PackSegment, TextContext
from helios_serve.model_executor.models.helios.lora import LoraAdapter
from helios_serve.model_executor.models.helios.samplers import (
    SamplerState,
    advance,
    unpatchify,
)
from helios_serve.model_executor.models.helios.transformer import HeliosTransformer
from helios_serve.model_executor.streams import DeviceStreams, HostCopy
from helios_serve.model_executor.worker.chunk_end import ChunkEnd, LaunchedPlan, failure_of
from helios_serve.model_executor.worker.history_pool import HistoryPool
from helios_serve.model_executor.worker.kept_latents import KeptLatents
from helios_serve.model_executor.worker.noise_stream import NoiseStream
from helios_serve.model_executor.worker.packed_batch import Job, PackedBatch
from helios_serve.model_executor.worker.prompt_reader import PromptReader
from helios_serve.model_executor.worker.session_state import ChunkState, SessionState
from helios_serve.model_executor.worker.tensors import as_tensor, dtype_name
from helios_serve.size import Size
from helios_serve.video_request import PromptWeight, VideoRequest

MAX_ADAPTERS = 8
"""LoRA adapters that are cached for later sessions."""


class ModelRunner:
    """Holds the state of all sessions on a device and advances them with the transformer.

    `num_blocks` is the size of the history pool. `text_bytes` limits the cache of prompts' keys and
    values. With `batch_invariant` each pack segment runs alone, so that results do not depend on
    the batch. Latents of finished chunks are put into `kept` for a decoder on the same device.
    `streams` are those of the device.
    """

    def __init__(
        self,
        config: HeliosConfig,
        transformer: HeliosTransformer,
        device: torch.device,
        *,
        num_blocks: int,
        text_bytes: int,
        batch_invariant: bool = False,
        streams: DeviceStreams | None = None,
        kept: KeptLatents | None = None,
    ) -> None:
        self.config = config
        self.transformer = transformer
        self.device = device
        self.batch_invariant = batch_invariant
        self.streams = streams or DeviceStreams(device)
        self.kept = kept
        self.pool = HistoryPool(num_blocks, transformer.dtype, device)
        self.prompts = PromptReader(transformer, text_bytes)
        self.sessions: dict[str, SessionState] = {}
        self._adapters: OrderedDict[AdapterKey, LoraAdapter] = OrderedDict()
        self._noise_factor = block_noise_factor(config.scheduler.gamma).to(device)
        self._noise_thread = ThreadPoolExecutor(1, "noise")
        self._forward_seconds = 0.0

    def execute_model(self, output: SchedulerOutput) -> RunnerOutput:
        """`launch` a plan, and wait until the device has finished its chunks."""
        return self.launch(output).wait()

    def launch(self, output: SchedulerOutput) -> LaunchedPlan:
        """Launch a plan: close finished sessions, open new ones and run the scheduled steps.

        It does not wait for the device. An exception in one session fails that session only: it is
        closed and reported in `failures`, and its later steps are skipped.
        """
        self._forward_seconds = 0.0
        for session_id in output.finished:
            self.sessions.pop(session_id, None)
        failures: list[SessionFailure] = []
        jobs, ends = [], []
        with current_device(self.device):
            for new in output.new_sessions:
                with self._isolated(new.session_id, failures):
                    self.sessions[new.session_id] = self._open(new)
            for step in output.scheduled_steps:
                if step.session_id in self.sessions:
                    with self._isolated(step.session_id, failures):
                        jobs.append(self._prepare(step))
            self._denoise(jobs, failures)
            for step in output.scheduled_steps:
                session = self.sessions.get(step.session_id)
                if session is not None and session.is_last_step(step.cursor):
                    with self._isolated(step.session_id, failures):
                        ends.append(self._end_chunk(step, session))
        return LaunchedPlan(tuple(ends), tuple(failures), self._forward_seconds)

    @contextmanager
    def _isolated(self, session_id: str, failures: list[SessionFailure]) -> Iterator[None]:
        """Turn an exception of the block into the failure of one session."""
        try:
            yield
        except Exception as error:  # must not affect the other sessions
            self._fail(session_id, error, failures)

    def _fail(self, session_id: str, error: Exception, failures: list[SessionFailure]) -> None:
        self.sessions.pop(session_id, None)
        failures.append(failure_of(session_id, error))

    def _open(self, new: NewSession) -> SessionState:
        params = new.request.params.resolve(self.config)
        generator = Generator().manual_seed(params.seed)
        geometry = Geometry(params.height, params.width)
        adapter = self._adapter(new.request)
        if new.snapshot is not None:
            self._restore(new.snapshot, new.blocks, generator)

        def draw(source: Generator) -> ChunkNoise:
            noise = draw_chunk_noise(source, geometry, self.config.stages)
            return noise if self.device.type == "cpu" else noise.pin_memory()

        return SessionState(
            params=params,
            geometry=geometry,
            adapter=adapter,
            noise=NoiseStream(generator, draw, self._noise_thread),
            prompts={item.prompt: as_tensor(item.states) for item in new.prompts},
        )

    def _restore(self, snapshot: Snapshot, blocks: ChunkBlocks, generator: Generator) -> None:
        """Restore the history to `blocks`, unless they are empty, and the generator's state."""
        pool_dtype = dtype_name(self.pool.blocks.dtype)
        if snapshot.chunk > 0 and snapshot.dtype != pool_dtype:
            raise HeliosError(
                f"got a snapshot in {snapshot.dtype}, expected the worker's dtype {pool_dtype}"
            )
        if blocks.window:
            dtype = getattr(torch, snapshot.dtype)
            self.pool.restore(snapshot.anchor, dtype, blocks.window)
            self.pool.restore(snapshot.frames, dtype, blocks.append)
        if snapshot.reseed is not None:
            generator.manual_seed(snapshot.reseed)
        else:
            state = torch.frombuffer(bytearray(snapshot.rng), dtype=torch.uint8)
            generator.set_state(state)

    def _adapter(self, request: VideoRequest) -> LoraAdapter | None:
        """Return the request's adapter, loaded once. With a scale of 0 it is only checked."""
        if request.lora is None:
            return None
        key = adapter_key(request.lora, request.lora_scale)
        if key not in self._adapters:
            adapter = load_adapter(request.lora, self.transformer, request.lora_scale)
            logger.info("%s: %d LoRA layers applied", request.lora, len(adapter.layers))
            self._adapters[key] = adapter
            if len(self._adapters) > MAX_ADAPTERS:
                self._adapters.popitem(last=False)
        self._adapters.move_to_end(key)
        return self._adapters[key] if request.lora_scale else None

    def _prepare(self, scheduled: ScheduledStep) -> Job:
        """Advance the session to the step's cursor: start its chunk and enter its stage if new."""
        session = self.sessions[scheduled.session_id]
        chunk_index, stage, step = scheduled.cursor
        if scheduled.start is not None:
            session.chunk = self._begin_chunk(session, chunk_index, scheduled.start)
        assert session.chunk is not None, f"{scheduled.session_id} has no chunk to continue"
        if step == 0 and stage > 0:
            self._enter_stage(session, session.chunk, stage)
        return Job(
            scheduled.session_id,
            session,
            session.chunk,
            stage,
            session.chunk.schedule[stage].steps[step],
        )

    def _begin_chunk(self, session: SessionState, index: int, start: ChunkStart) -> ChunkState:
        for item in start.new_prompts:
            session.prompts[item.prompt] = as_tensor(item.states)
        noise = session.noise.take(is_last=index + 1 == session.params.num_chunks)
        negative = (PromptWeight(session.params.negative_prompt, 1.0),)
        return ChunkState(
            blocks=start.blocks,
            window=upload(torch.tensor(start.blocks.window), self.device),
            schedule=session.schedule(self.config, index),
            noise=noise,
            prompt=self._read(session, start.mix),
            negative=self._read(session, negative) if session.params.is_guided else None,
            sampler=SamplerState.at_stage_start(upload(noise.start, self.device)),
        )

    def _read(self, session: SessionState, mix: tuple[PromptWeight, ...]) -> TextContext:
        limit = session.params.max_sequence_length
        return self.prompts.read(mix, session.prompts, limit, session.adapter)

    def _enter_stage(self, session: SessionState, chunk: ChunkState, stage: int) -> None:
        transition = chunk.schedule[stage].transition
        assert transition is not None
        grid = session.geometry.stage_patches(stage - 1, self.config.stages)
        drawn = upload(chunk.noise.stages[stage - 1], self.device)
        rows = chunk.sampler.latents
        latents = kernels_of(rows).enter_stage(
            rows,
            grid,
            transition,
            drawn,
            self._noise_factor,
            self.transformer.dtype,
        )
        chunk.sampler = SamplerState.at_stage_start(latents)

    @torch.inference_mode()
    def _denoise(self, jobs: Sequence[Job], failures: list[SessionFailure]) -> None:
        """Run one packed forward, without zero-init steps, then the sampler step of every job."""
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
        """Return the flow of each job, or its exception.

        A batch that runs out of memory is halved; one that fails otherwise is run job by job, to
        find the jobs that cause it. A forward that failed can be retried: it changes no state.
        """
        try:
            batch = PackedBatch(jobs, self.config, self.pool, one_by_one=self.batch_invariant)
            return [*batch.guided_flows([self._forward(pack) for pack in batch.packs])]
        except Exception as error:
            if self.transformer.ranks is not None:
                raise  # the other ranks may not have failed, so a retry would diverge
            if len(jobs) == 1:
                return [error]
            size = len(jobs) // 2 if isinstance(error, torch.OutOfMemoryError) else 1
            parts = [jobs[start : start + size] for start in range(0, len(jobs), size)]
            return [flow for part in parts for flow in self._flows(part)]

    def _forward(self, segments: Sequence[PackSegment]) -> Tensor:
        started = time.perf_counter()
        if (ranks := self.transformer.ranks) is not None:
            ranks.check_same([(item.timestep, item.rope.places.shape) for item in segments])
        flow: Tensor = self.transformer(segments)
        self._forward_seconds += time.perf_counter() - started
        return flow

    def _end_chunk(self, scheduled: ScheduledStep, session: SessionState) -> ChunkEnd:
        """Write the chunk's latent frames to its blocks, and start to copy what is reported."""
        assert session.chunk is not None
        index, blocks = scheduled.cursor.chunk, session.chunk.blocks
        latents = unpatchify(session.chunk.sampler.latents, session.geometry.patches)
        self.pool.write(latents, blocks.append)
        session.chunk = None
        if self.kept is not None:
            self.kept.put(scheduled.session_id, index, latents)
        size = session.geometry.blocks_per_frame
        anchor, frames = blocks.window[:size], blocks.window[size:] + blocks.append
        if blocks.new_anchor:
            anchor = blocks.append[:size]
        history = [block for block in frames[-HISTORY_FRAMES * size :] if block != NULL_BLOCK]
        return ChunkEnd(
            scheduled.session_id,
            index,
            HostCopy(
                self.streams,
                [
                    latents.isfinite().all(),
                    latents[None],
                    self.pool.read(anchor),
                    self.pool.read(history),
                ],
            ),
            num_frames=len(history) // size,
            rng=session.noise.state,
            size=Size(session.geometry.width, session.geometry.height),
        )
