"""Encode and decode tasks of a worker, and the threads that execute them."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Generator, Tensor

from helios_serve.errors import describe_error
from helios_serve.logger import logger
from helios_serve.media.mp4 import encode_chunk
from helios_serve.media.references import fit_frames
from helios_serve.messages import (
    ChunkDecoded,
    DecodeTask,
    EncodedPrompt,
    EncodeTask,
    InputsEncoded,
    Snapshot,
)
from helios_serve.model_executor.models.helios.conditioning import (
    HistorySeed,
    seed_from_image,
    seed_from_video,
)
from helios_serve.model_executor.models.text_encoder import TextEncoder
from helios_serve.model_executor.models.vae import Vae
from helios_serve.model_executor.worker.history_pool import tile_rows
from helios_serve.model_executor.worker.tensors import as_bytes, as_data, as_tensor
from helios_serve.video_request import Frames, VideoRequest

Task = TypeVar("Task")


class InputEncoder:
    """Executes encode tasks."""

    def __init__(self, text_encoder: TextEncoder, vae: Vae) -> None:
        self.text_encoder = text_encoder
        self.vae = vae

    def encode(self, task: EncodeTask) -> InputsEncoded:
        """Encode a session's inputs. Never raises: a failure is the result's `error`."""
        started = time.perf_counter()
        try:
            limit = task.max_sequence_length
            prompts = tuple(
                EncodedPrompt(text, as_data(self.text_encoder.encode(text, limit)))
                for text in task.prompts
            )
            snapshot, inputs = None, None
            if task.seed_from is not None:
                snapshot, inputs = self._seed(task.seed_from)
        except Exception as error:  # reported to the engine, which fails that session only
            logger.error("encoding for %s failed", task.session_id, exc_info=error)
            message = f"encoding failed: {describe_error(error)}"
            return InputsEncoded(task.session_id, error=message)
        return InputsEncoded(
            task.session_id,
            prompts,
            snapshot,
            None if inputs is None else as_data(inputs[None]),
            seconds=time.perf_counter() - started,
        )

    def _seed(self, request: VideoRequest) -> tuple[Snapshot, Tensor | None]:
        """Return the snapshot before the first chunk, and the input latents if requested."""
        generator = Generator().manual_seed(request.params.seed)
        anchor, frames, inputs = self._history(request, generator)
        snapshot = Snapshot(
            chunk=0,
            rng=as_bytes(generator.get_state()),
            anchor=as_bytes(tile_rows(anchor)),
            frames=as_bytes(tile_rows(frames)),
            num_frames=frames.shape[1],
            dtype="float32",
            height=request.params.height,
            width=request.params.width,
        )
        return snapshot, inputs if request.keep_input_latents else None

    def _history(self, request: VideoRequest, generator: Generator) -> HistorySeed:
        if request.image is not None:
            return seed_from_image(as_pixels(request.image), self.vae, generator, request.params)
        assert request.video is not None, "a request without a reference has no history"
        return seed_from_video(
            as_pixels(request.video),
            self.vae,
            generator,
            request.params,
            keep_inputs=request.keep_input_latents,
            skipped=request.video.skipped,
        )


def as_pixels(frames: Frames) -> Tensor:
    """Return frames as a uint8 tensor (count, height, width, 3)."""
    flat = torch.frombuffer(bytearray(frames.data), dtype=torch.uint8)
    return flat.view(frames.count, frames.height, frames.width, 3)


class ChunkDecoder:
    """Executes decode tasks."""

    def __init__(self, vae: Vae) -> None:
        self.vae = vae

    def decode(self, task: DecodeTask) -> ChunkDecoded:
        """Decode a chunk. Never raises: a failure is the result's `error`."""
        started = time.perf_counter()
        try:
            frames = self._frames(task)
            segment = None
            if task.output == "segment":
                segment = encode_chunk(frames, chunk=task.chunk, fps=task.fps)
        except Exception as error:  # reported to the engine, which fails that session only
            logger.error(
                "decoding chunk %d of %s failed", task.chunk, task.session_id, exc_info=error
            )
            message = f"decoding failed: {describe_error(error)}"
            return ChunkDecoded(task.session_id, task.chunk, error=message)
        return ChunkDecoded(
            task.session_id,
            task.chunk,
            frames if segment is None else None,
            segment,
            seconds=time.perf_counter() - started,
        )

    def _frames(self, task: DecodeTask) -> Frames:
        """Return the frames of the chunk that belong to the video, in the size to show."""
        pixels = self.vae.decode(as_tensor(task.latents)[0])[: task.num_frames]
        count, height, width, _ = pixels.shape
        frames = Frames(as_bytes(pixels), count, height, width)
        return frames if task.shown_size is None else fit_frames(frames, *task.shown_size)


@contextlib.contextmanager
def side_thread(
    work: Callable[[Task], None],
    tasks: "queue.SimpleQueue[Task | None]",
    device: torch.device,
    name: str,
) -> Iterator[None]:
    """Run `work` on the tasks of a queue, in a thread, until it takes None. A context manager.

    Leaving the context waits for the thread. On devices with streams the thread uses its own one.
    """

    def run() -> None:
        with own_stream(device):
            while (task := tasks.get()) is not None:
                work(task)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    yield
    thread.join()


def own_stream(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Return the context of a new stream, or a null context on a CPU."""
    return contextlib.nullcontext() if device.type == "cpu" else torch.Stream(device)
