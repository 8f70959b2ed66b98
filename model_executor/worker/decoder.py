"""Finished chunks to frames, beside the denoising of later ones."""

import contextlib
import threading
from collections.abc import Callable

import torch

from helios_serve.logger import logger
from helios_serve.messages import ChunkDecoded, DecodeTask
from helios_serve.model_executor.models.vae import Vae
from helios_serve.model_executor.worker.decode_queue import DecodeQueue
from helios_serve.model_executor.worker.latents import as_latents
from helios_serve.sampling_params import Frames


class ChunkDecoder:
    """A thread that decodes one chunk after another; on a GPU in a stream of its own."""

    def __init__(
        self, vae: Vae, device: torch.device, emit: Callable[[ChunkDecoded], None]
    ) -> None:
        self.vae = vae
        self.device = device
        self.emit = emit
        self._tasks = DecodeQueue()
        self._thread = threading.Thread(target=self._run, name="decoder", daemon=True)
        self._thread.start()

    def submit(self, task: DecodeTask) -> None:
        self._tasks.put(task)

    def close(self) -> None:
        """Finish what was submitted, and end the thread."""
        self._tasks.close()
        self._thread.join()

    def _run(self) -> None:
        with own_stream(self.device):
            while (task := self._tasks.get()) is not None:
                self.emit(self._decode(task))

    def _decode(self, task: DecodeTask) -> ChunkDecoded:
        try:
            frames = self.vae.decode(as_latents(task.latents)[0])
        except Exception as error:  # one chunk that fails must not end the others
            logger.error(
                "decoding chunk %d of %s failed", task.chunk, task.session_id, exc_info=error
            )
            message = f"decoding failed: {type(error).__name__}: {error}"
            return ChunkDecoded(task.session_id, task.chunk, None, message)
        packed = Frames(frames.numpy().tobytes(), *frames.shape[:3])
        return ChunkDecoded(task.session_id, task.chunk, packed)


def own_stream(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """A stream beside the default one where the device has streams."""
    return contextlib.nullcontext() if device.type == "cpu" else torch.Stream(device)
