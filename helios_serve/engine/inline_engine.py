"""One model in this process, for one caller at a time: no server, no other processes."""

import math
from collections.abc import Iterator
from typing import NamedTuple

from helios_serve.core.history_manager import HistoryManager
from helios_serve.engine.loop.engine_core import EngineCore
from helios_serve.engine.loop.events import ChunkReady, RequestFailed, StepTaken
from helios_serve.errors import HeliosError
from helios_serve.messages import StepCursor
from helios_serve.model_config import Geometry, HeliosConfig
from helios_serve.model_executor.checks import check_compilation, check_sizes
from helios_serve.model_executor.components import build_transformer
from helios_serve.model_executor.device import check_fp8, resolve_device, resolve_dtype
from helios_serve.model_executor.executor.inline import InlineExecutor
from helios_serve.model_executor.loader import (
    LoadedModel,
    load_checkpoint,
    open_checkpoint,
)
from helios_serve.model_executor.lora_files import load_adapter
from helios_serve.model_executor.worker.warm_up import warm_up
from helios_serve.model_executor.worker.worker import Worker
from helios_serve.options.engine import EngineConfig
from helios_serve.options.workers import WorkerOptions
from helios_serve.video_request import VideoRequest


class StepDone(NamedTuple):
    """One denoise step of the request: number `done` of `total`."""

    cursor: StepCursor
    done: int
    total: int


class InlineEngine:
    """Loads a model and generates one request after another.

    The checkpoint's configuration, device and dtype are checked at once; weights are loaded by
    `load`, or by the first request.
    """

    def __init__(self, model: str, options: WorkerOptions) -> None:
        self.options = options
        self.checkpoint = open_checkpoint(model, options.load_format)
        self.device = resolve_device(options.device)
        self.dtype = resolve_dtype(options.dtype, self.device)
        if options.quantization is not None:
            check_fp8(self.device, self.dtype)
        check_compilation(options.compile_sizes, self.config, offload=options.offload)
        self.warm_up_sizes = check_sizes("warm_up_sizes", options.warm_up_sizes, self.config)
        self._model: LoadedModel | None = None

    @property
    def config(self) -> HeliosConfig:
        return self.checkpoint.config

    def load(self) -> LoadedModel:
        """Return the model, which the first call loads."""
        if self._model is None:
            self._model = load_checkpoint(
                self.checkpoint, self.device, self.dtype, options=self.options
            )
            if self._model.transformer is not None and self.warm_up_sizes:
                warm_up(self._model.transformer, self.config, self.warm_up_sizes)
        return self._model

    def check(self, request: VideoRequest) -> None:
        """Raise InvalidRequestError or CheckpointError for an invalid request. Loads no weights."""
        request.resolve(self.config)
        if request.lora is not None:
            skeleton = build_transformer(self.checkpoint.folder, self.config, self.dtype).module
            load_adapter(request.lora, skeleton, request.lora_scale)

    def generate(self, request: VideoRequest) -> Iterator[StepDone | ChunkReady]:
        """Generate the video of a checked request. Raises HeliosError if that fails.

        The history pool has exactly the blocks that one session of the request's size needs.
        """
        model = self.load()
        geometry = Geometry(request.params.height, request.params.width)
        executor = InlineExecutor(
            lambda _, emit: Worker(
                model,
                emit,
                history_blocks=HistoryManager.peak_blocks(geometry) + 1,
                batch_invariant=self.options.batch_invariant,
                continuous_decode=self.options.continuous_decode,
            )
        )
        config = EngineConfig(step_deadline=math.inf, start_deadline=math.inf)
        core = EngineCore(executor, self.config, config)
        try:
            total = core.add_request(request).params.total_steps
            done = 0
            while core.has_unfinished:
                for event in core.step():
                    if isinstance(event, StepTaken):
                        done += 1
                        yield StepDone(event.cursor, done, total)
                    elif isinstance(event, ChunkReady):
                        yield event
                    elif isinstance(event, RequestFailed):
                        raise HeliosError(event.message)
        finally:
            executor.shutdown()
