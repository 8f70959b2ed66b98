"""The worker: executes plans, encode tasks and decode tasks on one device."""

import contextlib
import queue
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import msgspec
import torch

from helios_serve.errors import DeviceError
from helios_serve.kernels.backend import choose_kernels
from helios_serve.messages import (
    ChunkDecoded,
    ChunkRendered,
    EncodeTask,
    InputsEncoded,
    SchedulerOutput,
    WorkerEvent,
    WorkerInfo,
    WorkerReady,
)
from helios_serve.model_config import BLOCK_ROWS, PATCH_DIM, Geometry
from helios_serve.model_executor.checks import check_context_parallel, check_sizes
from helios_serve.model_executor.device import (
    device_memory,
    device_name,
    release_cached,
    resolve_device,
    resolve_dtype,
)
from helios_serve.model_executor.loader import LoadedModel, load_checkpoint, open_checkpoint
from helios_serve.model_executor.models.helios.exchange import Ranks
from helios_serve.model_executor.models.helios.transformer import HeliosTransformer
from helios_serve.model_executor.streams import DeviceStreams, Passing
from helios_serve.model_executor.worker.chunk_decoder import ChunkDecoder
from helios_serve.model_executor.worker.commands import Commands
from helios_serve.model_executor.worker.decoder_states import DecoderStates
from helios_serve.model_executor.worker.group import (
    Followers,
    device_of,
)
from helios_serve.model_executor.worker.kept_latents import KeptLatents
from helios_serve.model_executor.worker.model_runner import ModelRunner
from helios_serve.model_executor.worker.reports import PlanReports
from helios_serve.model_executor.worker.side_thread import side_thread
from helios_serve.model_executor.worker.tasks import InputEncoder
from helios_serve.model_executor.worker.warm_up import side_tasks, warm_up
from helios_serve.options.workers import WorkerConfig

Emit = Callable[[WorkerEvent], None]
"""Sends an event to the engine."""

POOL_SHARE = 0.1
"""Share of the free memory, after loading, that the history pool takes."""
POOL_LIMIT = 4 << 30
"""Maximum bytes of the history pool: 1800 sessions at 640x384 in bfloat16."""
TEXT_SHARE = 0.1
"""Share of the free memory for the keys and values of prompts in use. As much again is used to
cache those of other prompts."""
TEXT_LIMIT = 16 << 30
"""Maximum bytes of either."""
STATE_SHARE = 0.2
"""Share of the free memory for the decoder's states with `continuous_decode`."""
CPU_SIDE, GPU_SIDE, MEASUREMENTS = 512, 8192, 5
"""Sides of the matrices by which the speed of a device is measured, and the number of products."""
POLL_SECONDS = 0.5
"""Time after which a warm-up looks whether the worker is to end."""
MAX_PENDING = 1
"""Plans that may be unfinished on the device when the kernels of another one are launched."""


class Pace:
    """Lets a worker launch the kernels of one plan while the device executes the previous plan.

    Launching kernels takes a fraction of their run time. Without a limit a worker would report
    steps long before they are executed: urgent sessions would wait for all steps that were launched
    before, aborted sessions would still be computed, and measured times would not be the device's.
    On a CPU there is nothing to wait for.
    """

    def __init__(self, streams: DeviceStreams) -> None:
        self.streams = streams
        self._pending: deque[Passing] = deque()

    @contextmanager
    def plan(self) -> Iterator[None]:
        """Launch the kernels of one plan in this context. Entering it waits for the device."""
        while len(self._pending) > MAX_PENDING:
            self._pending.popleft().synchronize()
        yield
        if self.streams.is_concurrent:
            self._pending.append(self.streams.record())


class Worker:
    """Executes plans in order and, in other threads, encode and decode tasks.

    Results are sent through `emit`, which is called from several threads. `followers` are the other
    ranks of a context-parallel worker. None for `history_blocks` sizes the pool by the free memory,
    and None for `streams` takes those of the model's device. With `continuous_decode` a chunk is
    decoded as the continuation of the one before it.
    """

    def __init__(
        self,
        model: LoadedModel,
        emit: Emit,
        *,
        history_blocks: int | None = None,
        batch_invariant: bool = False,
        continuous_decode: bool = False,
        followers: Followers | None = None,
        streams: DeviceStreams | None = None,
        warm_up_sizes: Sequence[Geometry] = (),
    ) -> None:
        self.model = model
        self.warm_up_sizes = warm_up_sizes
        self.emit = emit
        self.followers = followers
        self.streams = streams or DeviceStreams(model.device)
        self.pace = Pace(self.streams)
        self.kept = KeptLatents(self.streams)
        self.states: DecoderStates | None = None
        self.reports = PlanReports(emit, in_thread=self.streams.is_concurrent)
        self.runner: ModelRunner | None = None
        self.ready = WorkerReady(info=worker_info(model))
        if model.vae is not None:
            flops = convolution_flops(model.device)
            self.ready = msgspec.structs.replace(
                self.ready,
                encode_pixels=flops / model.vae.encode_flops,
                decode_pixels=flops / model.vae.decode_flops,
            )
            if continuous_decode:
                free = device_memory(model.device).free
                self.states = DecoderStates(int(STATE_SHARE * free))
        if model.transformer is not None:
            num_blocks = history_blocks or default_blocks(model.transformer)
            text_bytes = default_text_bytes(model.transformer)
            self.runner = ModelRunner(
                model.config,
                model.transformer,
                model.device,
                num_blocks=num_blocks,
                text_bytes=text_bytes,
                batch_invariant=batch_invariant,
                streams=self.streams,
                kept=self.kept if model.vae is not None else None,
            )
            self.ready = msgspec.structs.replace(
                self.ready,
                num_blocks=num_blocks,
                text_rows=text_bytes // text_row_bytes(model.transformer),
                flops=matmul_flops(model.device, model.transformer.dtype)
                * num_ranks(model.transformer),
            )

    def run(self, commands: Commands) -> None:
        """Emit WorkerReady and execute commands until they are closed."""
        with self.task_threads(commands), self.reports.running(interrupt=commands.close):
            self.warm_up_tasks(commands)
            self.emit(self.ready)
            while (plan := commands.plans.get()) is not None:
                self.execute(plan)
        if self.followers is not None:
            self.followers.close()

    def warm_up_tasks(self, commands: Commands) -> None:
        """Encode a prompt and decode chunks of the warm-up sizes, in the threads that do it later.

        Raises DeviceError if that fails. Ends early when `commands` are closed.
        """
        model, results = self.model, queue.SimpleQueue[WorkerEvent]()
        emit, self.emit = self.emit, results.put
        try:
            for task in side_tasks(
                self.warm_up_sizes,
                encodes=model.text_encoder is not None and model.vae is not None,
                decodes=model.vae is not None,
                is_continuous=self.states is not None,
            ):
                commands.put(task)
                check_task(await_result(results, commands), model.device)
        finally:
            self.emit = emit
        release_cached(model.device)

    @contextlib.contextmanager
    def task_threads(self, commands: Commands) -> Iterator[None]:
        """Execute encode and decode tasks in threads until `commands` are closed."""
        model, streams = self.model, self.streams
        with contextlib.ExitStack() as threads:
            if model.text_encoder is not None and model.vae is not None:
                encoder = InputEncoder(model.text_encoder, model.vae)

                def encode(task: EncodeTask) -> None:
                    self.emit(encoder.encode(task))

                threads.enter_context(
                    side_thread(encode, commands.encode, "encoder", streams.own())
                )
            if model.vae is not None:
                decoder = ChunkDecoder(
                    model.vae, lambda event: self.emit(event), self.kept, streams, self.states
                )
                threads.enter_context(decoder.running(commands.decode))
            yield

    def execute(self, plan: SchedulerOutput) -> None:
        """Launch a plan. StepsDone follows when its results are on the host."""
        assert self.runner is not None, "got a plan for a worker without the denoise role"
        started = time.perf_counter()
        with self.pace.plan():
            if self.followers is None:
                launched = self.runner.launch(plan)
            else:
                launched = self.followers.share(plan, self.runner.launch)
        self.reports.put(launched, time.perf_counter() - started)


def load_worker(config: WorkerConfig, emit: Emit) -> Worker:
    """Create the worker that `config` describes, and its followers with context parallelism.

    Raises CheckpointError, DeviceError or InvalidRequestError.
    """
    if config.ranks == 1:
        return load_rank(config, emit)
    device = resolve_device(config.device)
    check_context_parallel(config, open_checkpoint(config.model, config.load_format).config)
    for rank in range(config.ranks):
        resolve_device(device_of(rank, device))
    followers = Followers(config, device, emit)
    return load_rank(config, emit, join=followers.join, followers=followers)


def load_rank(
    config: WorkerConfig,
    emit: Emit,
    *,
    join: Callable[[torch.device], Ranks] | None = None,
    followers: Followers | None = None,
) -> Worker:
    """Create a worker, or one rank of it, which calls `join` to join the others when loaded."""
    device = resolve_device(config.device)
    checkpoint = open_checkpoint(config.model, config.load_format)
    dtype = resolve_dtype(config.dtype, device)
    sizes = check_sizes("warm_up_sizes", config.warm_up_sizes, checkpoint.config)
    model = load_checkpoint(checkpoint, device, dtype, config.roles, config)
    if model.transformer is not None:
        warm_up(model.transformer, model.config, sizes)
    history_blocks = config.history_blocks
    if join is not None:
        assert model.transformer is not None, "context parallel needs the denoise role"
        model.transformer.ranks = join(device)
        own = history_blocks or default_blocks(model.transformer)
        history_blocks = model.transformer.ranks.smallest(own)
    return Worker(
        model,
        emit,
        history_blocks=history_blocks,
        batch_invariant=config.batch_invariant,
        continuous_decode=config.continuous_decode,
        followers=followers,
        warm_up_sizes=sizes,
    )


def await_result(results: queue.SimpleQueue[WorkerEvent], commands: Commands) -> WorkerEvent | None:
    """Return the next result of a task, or None if `commands` were closed before there was one."""
    while True:
        try:
            event = results.get(timeout=POLL_SECONDS)
        except queue.Empty:
            if commands.is_closed:
                return None
        else:
            if not isinstance(event, ChunkRendered):  # the result of a decode task follows it
                return event


def check_task(event: WorkerEvent | None, device: torch.device) -> None:
    """Raise DeviceError if a task of the warm-up failed."""
    error = event.error if isinstance(event, InputsEncoded | ChunkDecoded) else None
    if error is not None:
        raise DeviceError(f"got {device}, on which the warm-up failed: {error}")


def worker_info(model: LoadedModel) -> WorkerInfo:
    """Return what a worker with `model` runs on."""
    device = device_name(model.device)
    if model.transformer is None:
        return WorkerInfo(device, choose_kernels(model.device).backend)
    choice = model.transformer.kernels
    return WorkerInfo(device, choice.backend, choice.attention, choice.library)


def matmul_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Return the FLOP/s of matrix products on a device: the best of several short measurements."""
    side = CPU_SIDE if device.type == "cpu" else GPU_SIDE
    factor = torch.ones(side, side, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(MEASUREMENTS):
        started = time.perf_counter()
        product = factor @ factor
        product[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - started)
    return 2 * side**3 / max(best, 1e-9)


def convolution_flops(device: torch.device) -> float:
    """Return FLOP/s that convolutions do not exceed: GPUs may compute those of fp32 in TF32."""
    dtypes = [torch.float32] if device.type == "cpu" else [torch.float32, torch.bfloat16]
    return max(matmul_flops(device, dtype) for dtype in dtypes)


def num_ranks(transformer: HeliosTransformer) -> int:
    return transformer.ranks.size if transformer.ranks is not None else 1


def default_blocks(transformer: HeliosTransformer) -> int:
    """Return the number of history blocks that fit in `POOL_SHARE` of the free memory."""
    block_bytes = BLOCK_ROWS * PATCH_DIM * transformer.dtype.itemsize
    return int(min(POOL_SHARE * device_memory(transformer.device).free, POOL_LIMIT)) // block_bytes


def default_text_bytes(transformer: HeliosTransformer) -> int:
    """Return the bytes for the keys and values of prompts in use."""
    return int(min(TEXT_SHARE * device_memory(transformer.device).free, TEXT_LIMIT))


def text_row_bytes(transformer: HeliosTransformer) -> int:
    """Return the bytes of the keys and values of one prompt token in all layers."""
    config = transformer.config
    return 2 * config.num_layers * config.inner_dim * transformer.dtype.itemsize
