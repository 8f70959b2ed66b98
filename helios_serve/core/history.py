"""A session's history as frames of blocks, all windows of which are views of one block table."""

from helios_serve.messages import NULL_BLOCK
from helios_serve.model_config import CHUNK_LATENTS, HISTORY_FRAMES, Geometry

Frame = tuple[int, ...]
"""The block ids of one latent frame, tile by tile, row major."""


class History:
    """The frames that one session still needs: its anchor and the last 19."""

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry
        self.blocks_per_frame = geometry.blocks_per_frame
        self.chunk_blocks = CHUNK_LATENTS * self.blocks_per_frame
        self.null_frame: Frame = (NULL_BLOCK,) * self.blocks_per_frame
        self.anchor: Frame = self.null_frame
        self.frames: list[Frame] = []
        self.pending: list[Frame] = []
        self.next_anchor: Frame | None = None

    @property
    def window(self) -> tuple[int, ...]:
        """The flat block table of the anchor and the last 19 frames, null frames in front."""
        missing = [self.null_frame] * (HISTORY_FRAMES - len(self.frames))
        return tuple(block for frame in (self.anchor, *missing, *self.frames) for block in frame)

    def split_frames(self, blocks: list[int]) -> list[Frame]:
        size = self.blocks_per_frame
        return [tuple(blocks[start : start + size]) for start in range(0, len(blocks), size)]
