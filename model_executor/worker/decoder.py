"""Decodes finished chunks to frames or MP4 segments."""

import time

from helios_serve.errors import describe_error
from helios_serve.logger import logger
from helios_serve.media.mp4 import encode_chunk
from helios_serve.media.references import fit_frames
from helios_serve.messages import ChunkDecoded, DecodeTask
from helios_serve.model_executor.models.vae import Vae
from helios_serve.model_executor.worker.tensors import as_bytes, as_tensor
from helios_serve.video_request import Frames


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
