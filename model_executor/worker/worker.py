"""One device's share of the work: a model, its sessions, and a decoder beside them."""

import time
from collections.abc import Callable

from helios_serve.messages import (
    DecodeTask,
    SchedulerOutput,
    StepsDone,
    WorkerConfig,
    WorkerEvent,
    WorkerReady,
)
from helios_serve.model_config import BLOCK_ROWS, PATCH_DIM
from helios_serve.model_executor.device import free_memory, resolve_device, resolve_dtype
from helios_serve.model_executor.loader import LoadedModel, load_checkpoint, open_checkpoint
from helios_serve.model_executor.worker.decoder import ChunkDecoder
from helios_serve.model_executor.worker.model_runner import ModelRunner

Emit = Callable[[WorkerEvent], None]

POOL_SHARE = 0.1
"""Of the memory that the model leaves free, for history."""
POOL_LIMIT = 4 << 30
"""Bytes of history at most: 1800 sessions at 384x640 in bfloat16."""


class Worker:
    """Executes plans in order and tells what came of them through `emit`, also from threads."""

    def __init__(
        self,
        model: LoadedModel,
        emit: Emit,
        *,
        history_blocks: int | None = None,
        batch_invariant: bool = False,
    ) -> None:
        num_blocks = history_blocks or default_blocks(model)
        self.runner = ModelRunner(model, num_blocks, batch_invariant=batch_invariant)
        self.emit = emit
        self.decoder = ChunkDecoder(model.vae, model.device, emit)
        emit(WorkerReady(num_blocks))

    def execute(self, plan: SchedulerOutput) -> None:
        """Run one plan; its chunks go on to the decoder."""
        for task in plan.decode:
            self.decoder.submit(task)
        started = time.perf_counter()
        output = self.runner.execute_model(plan)
        self.emit(StepsDone(output, time.perf_counter() - started))
        for chunk in output.chunks:
            self.decoder.submit(DecodeTask(chunk.session_id, chunk.chunk, chunk.latents))

    def close(self) -> None:
        """Decode what is left, and end."""
        self.decoder.close()


def load_worker(config: WorkerConfig, emit: Emit) -> Worker:
    """Load the model that `config` names; raises CheckpointError and DeviceError."""
    device = resolve_device(config.device)
    checkpoint = open_checkpoint(config.model, config.load_format)
    return Worker(
        load_checkpoint(checkpoint, device, resolve_dtype(config.dtype, device)),
        emit,
        history_blocks=config.history_blocks,
        batch_invariant=config.batch_invariant,
    )


def default_blocks(model: LoadedModel) -> int:
    """Blocks that a share of the free memory holds."""
    block_bytes = BLOCK_ROWS * PATCH_DIM * model.transformer.dtype.itemsize
    return int(min(POOL_SHARE * free_memory(model.device), POOL_LIMIT)) // block_bytes
