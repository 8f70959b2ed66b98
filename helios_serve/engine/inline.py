"""One model in this process, for one caller at a time: no server, no other processes."""

from collections.abc import Iterator
from typing import NamedTuple

from helios_serve.core.history_manager import HistoryManager
from helios_serve.engine.core import EngineCore
from helios_serve.errors import HeliosError
from helios_serve.logger import logger
from helios_serve.messages import ChunkResult, StepCursor
from helios_serve.model_config import Geometry, HeliosConfig
from helios_serve.model_executor.components import build_transformer
from helios_serve.model_executor.device import resolve_device, resolve_dtype
from helios_serve.model_executor.loader import (
    LoadedModel,
    LoadFormat,
    load_checkpoint,
    open_checkpoint,
)
from helios_serve.model_executor.lora_files import load_adapter
from helios_serve.model_executor.worker.model_runner import ModelRunner
from helios_serve.sampling_params import VideoRequest


class StepDone(NamedTuple):
    """One denoise step of a request; `chunk` comes with the last step of a chunk."""

    cursor: StepCursor
    done: int
    total: int
    chunk: ChunkResult | None


class InlineEngine:
    """Loads a model and generates one request after another in the calling thread.

    The checkpoint's configuration, device and dtype are checked at once; weights are loaded by
    `load`, or by the first request.
    """

    def __init__(
        self,
        model: str,
        *,
        device: str = "auto",
        dtype: str = "auto",
        load_format: LoadFormat = "auto",
        batch_invariant: bool = False,
    ) -> None:
        self.batch_invariant = batch_invariant
        self.checkpoint = open_checkpoint(model, load_format)
        self.device = resolve_device(device)
        self.dtype = resolve_dtype(dtype, self.device)
        self._model: LoadedModel | None = None

    @property
    def config(self) -> HeliosConfig:
        return self.checkpoint.config

    def load(self) -> LoadedModel:
        """The model, loaded if it was not yet."""
        if self._model is None:
            if self.checkpoint.note is not None:
                logger.warning(self.checkpoint.note)
            self._model = load_checkpoint(self.checkpoint, self.device, self.dtype)
        return self._model

    def check(self, request: VideoRequest) -> None:
        """Raise InvalidRequestError or CheckpointError for what cannot be made; loads nothing."""
        request.check_inputs()
        request.params.resolve(self.config)
        if request.lora is not None:
            skeleton = build_transformer(self.checkpoint.folder, self.config, self.dtype).module
            load_adapter(request.lora, skeleton, request.lora_scale)

    def generate(self, request: VideoRequest) -> Iterator[StepDone]:
        """Run a checked request to its end.

        The history pool is made for the request: exactly what one session of its size can hold.
        """
        geometry = Geometry(request.params.height, request.params.width)
        num_blocks = HistoryManager.peak_blocks(geometry) + 1
        runner = ModelRunner(self.load(), num_blocks, batch_invariant=self.batch_invariant)
        core = EngineCore(runner, self.config, num_blocks)
        session = core.add_request(request)
        done, total = 0, session.params.total_steps
        while core.has_unfinished:
            cursor = session.cursor
            output = core.step()
            for failure in output.failures:
                raise HeliosError(failure.message)
            done += 1
            yield StepDone(cursor, done, total, output.chunks[0] if output.chunks else None)
