"""The configuration of a Helios checkpoint, and the counts derived from it.

The scheduler's cost model and the model share this module, so it does not import torch. Sizes are
height x width in pixels unless a name says otherwise.
"""

from typing import Literal, NamedTuple

import msgspec

CHUNK_FRAMES = 33
"""Pixel frames of a chunk: the causal VAE decodes 9 latent frames to 1 + 4 * (9 - 1)."""
CHUNK_LATENTS = 9
"""Latent frames of a chunk."""
LONG_FRAMES = 16
MID_FRAMES = 2
HISTORY_FRAMES = 19
"""Latent frames of history that a chunk attends to, oldest first: long 16, mid 2, short 1."""
WINDOW_FRAMES = 1 + HISTORY_FRAMES
"""Latent frames of a chunk's window: the anchor, usually the first one, and the history."""

LATENT_CHANNELS = 16
LATENT_STRIDE = 8
"""Pixels along a side of a latent pixel."""
PATCH_PIXELS = 16
"""Pixels along a side of a base patch, which is 1 x 2 x 2 latent pixels."""
PATCH_DIM = LATENT_CHANNELS * 2 * 2
"""Values in a base patch."""
TILE_PATCHES = 4
"""Base patches along a side of a tile. A long (4, 8, 8) patch is one tile of four frames."""
BLOCK_ROWS = TILE_PATCHES * TILE_PATCHES
"""Base patches of a history block, which is one tile of one latent frame."""

Variant = Literal["base", "mid", "distilled"]


class TransformerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`transformer/config.json`: the keys in which published checkpoints may differ."""

    num_layers: int
    num_attention_heads: int
    attention_head_dim: int
    ffn_dim: int
    text_dim: int
    freq_dim: int = 256
    rope_dim: tuple[int, int, int]
    rope_theta: float = 10000.0
    eps: float = 1e-6
    is_amplify_history: bool = False
    history_scale_mode: Literal["scalar", "per_head"] = "per_head"

    @property
    def inner_dim(self) -> int:
        return self.num_attention_heads * self.attention_head_dim


class SamplerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`scheduler/scheduler_config.json`. `solver` combines its class and its `scheduler_type`."""

    solver: Literal["unipc", "euler", "dmd"]
    num_train_timesteps: int = 1000
    shift: float = 1.0
    stages: int = 3
    stage_range: tuple[float, ...] = (0, 1 / 3, 2 / 3, 1)
    gamma: float = 1 / 3
    use_dynamic_shifting: bool = False
    time_shift_type: Literal["exponential", "linear"] = "exponential"
    base_image_seq_len: int = 256
    max_image_seq_len: int = 4096
    base_shift: float = 0.5
    max_shift: float = 1.15
    solver_order: Literal[1, 2] = 2
    solver_type: Literal["bh1", "bh2"] = "bh2"
    lower_order_final: bool = True
    disable_corrector: tuple[int, ...] = ()


class HeliosConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The configuration of a checkpoint: architecture, noise schedule and pipeline flags."""

    variant: Variant
    transformer: TransformerConfig
    scheduler: SamplerConfig
    cfg_zero_star: bool = False

    @property
    def stages(self) -> int:
        return self.scheduler.stages

    @property
    def size_multiple(self) -> int:
        """Height and width must be multiples of this: each pyramid stage halves the patch grid."""
        return PATCH_PIXELS << (self.stages - 1)


class Grid(NamedTuple):
    """The patch grid of one latent frame."""

    rows: int
    cols: int

    @property
    def size(self) -> int:
        return self.rows * self.cols


class Geometry(msgspec.Struct, frozen=True):
    """Counts of patches, tiles and tokens for a frame size in pixels."""

    height: int
    width: int

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width in latent pixels."""
        return self.height // LATENT_STRIDE, self.width // LATENT_STRIDE

    @property
    def patches(self) -> Grid:
        return Grid(self.height // PATCH_PIXELS, self.width // PATCH_PIXELS)

    @property
    def tiles(self) -> Grid:
        return self._coarser(TILE_PATCHES)

    @property
    def blocks_per_frame(self) -> int:
        return self.tiles.size

    @property
    def mid_patches(self) -> Grid:
        return self._coarser(2)

    @property
    def long_tokens(self) -> int:
        return LONG_FRAMES // 4 * self.tiles.size

    @property
    def mid_tokens(self) -> int:
        return MID_FRAMES // 2 * self.mid_patches.size

    @property
    def short_tokens(self) -> int:
        """Tokens of the anchor and of the last latent frame, at full resolution."""
        return 2 * self.patches.size

    @property
    def history_tokens(self) -> int:
        return self.long_tokens + self.mid_tokens + self.short_tokens

    def stage_patches(self, stage: int, stages: int) -> Grid:
        """Return the patch grid of a pyramid stage. The last stage has full resolution."""
        shrink = stages - 1 - stage
        return Grid(self.patches.rows >> shrink, self.patches.cols >> shrink)

    def noise_tokens(self, stage: int, stages: int) -> int:
        """Return the number of noise tokens of a chunk at a pyramid stage."""
        return CHUNK_LATENTS * self.stage_patches(stage, stages).size

    def _coarser(self, factor: int) -> Grid:
        rows, cols = self.patches
        return Grid(-(-rows // factor), -(-cols // factor))


def num_chunks(num_frames: int) -> int:
    """Return the number of chunks in a video of `num_frames` pixel frames."""
    return max(1, -(-num_frames // CHUNK_FRAMES))


class ChunkFrames(NamedTuple):
    """`length` pixel frames of a video, starting at frame `first`."""

    first: int
    length: int


def frames_of_chunk(num_frames: int, chunk: int) -> ChunkFrames:
    """Return the frames of `chunk` in a video of `num_frames`. The last chunk may be shorter."""
    first = chunk * CHUNK_FRAMES
    return ChunkFrames(first, min(CHUNK_FRAMES, num_frames - first))
