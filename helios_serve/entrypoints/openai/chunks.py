"""Which frames a chunk of a video has."""

from typing import NamedTuple

from helios_serve.model_config import CHUNK_FRAMES
from helios_serve.sampling_params import SamplingParams


class ChunkFrames(NamedTuple):
    """`length` frames from `first` on, counted from the beginning of the video."""

    first: int
    length: int


def frames_of_chunk(params: SamplingParams, chunk: int) -> ChunkFrames:
    """All chunks are as long but the last one, which may be cut."""
    first = chunk * CHUNK_FRAMES
    return ChunkFrames(first, min(CHUNK_FRAMES, params.num_frames - first))
