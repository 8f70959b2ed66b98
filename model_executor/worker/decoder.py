"""Finished chunks to frames, or to segments of an MP4."""

import time

from helios_serve.logger import logger
from helios_serve.media.mp4 import encode_chunk
from helios_serve.media.references import fit_frames
from helios_serve.messages import ChunkDecoded, DecodeTask
from helios_serve.model_executor.models.vae import Vae
from helios_serve.model_executor.worker.tensors import as_bytes, as_tensor
from helios_serve.video_request import Frames


class ChunkDecoder:
    """Decodes one chunk after another; a chunk that fails does not end the others."""

    def __init__(self, vae: Vae) -> None:
        self.vae = vae

    def decode(self, task: DecodeTask) -> ChunkDecoded:
        started = time.perf_counter()
        try:
            frames = self._frames(task)
            segment = None
            if task.output == "segment":
                segment = encode_chunk(frames, chunk=task.chunk, fps=task.fps)
        except Exception as error:  # told to the engine, which ends that session
            logger.error(
                "decoding chunk %d of %s failed", task.chunk, task.session_id, exc_info=error
            )
            message = f"decoding failed: {type(error).__name__}: {error}"
            return ChunkDecoded(task.session_id, task.chunk, error=message)
        return ChunkDecoded(
            task.session_id,
            task.chunk,
            frames if segment is None else None,
            segment,
            seconds=time.perf_counter() - started,
        )

    def _frames(self, task: DecodeTask) -> Frames:
        """The chunk's pixels, less those that the video does not want, in the size to show."""
        pixels = self.vae.decode(as_tensor(task.latents)[0])[: task.num_frames]
        count, height, width, _ = pixels.shape
        frames = Frames(as_bytes(pixels), count, height, width)
        return frames if task.shown_size is None else fit_frames(frames, *task.shown_size)
