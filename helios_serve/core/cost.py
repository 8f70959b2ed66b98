"""What steps, encoding and decoding cost, which is known before they run.

Steps are counted in FLOPs (a multiply-add is two), encoding and decoding in the pixels that the VAE
turns over. The scheduler charges tenants by it, and real-time admission sums it up; benchmarks use
the same numbers. Measured rates turn it into seconds.
"""

from functools import lru_cache
from typing import NamedTuple

from helios_serve.core.history_manager import HistoryManager
from helios_serve.messages import StepCursor
from helios_serve.model_config import (
    CHUNK_FRAMES,
    CHUNK_LATENTS,
    HISTORY_FRAMES,
    PATCH_DIM,
    Geometry,
    HeliosConfig,
    TransformerConfig,
)
from helios_serve.options.sampling import ResolvedParams
from helios_serve.options.scheduling import BatchLimits
from helios_serve.video_request import VideoRequest

TYPICAL_PROMPT_TOKENS = 64
"""Keys of a prompt, its padding collapsed; cross-attention is a percent of a step at most."""

PROMPT_PIXELS = 117_000
"""Pixels that the VAE encodes at the cost of a prompt. The encoder of Wan 2.1 takes 5.05 MFLOP a
pixel (torch's FlopCounterMode), and UMT5-XXL 0.59 TFLOP for 64 tokens: 9.3 GFLOP a token."""


class Flops(NamedTuple):
    """FLOPs by the kind of kernel, since each kind has a rate of its own."""

    linear: float
    attention: float

    @property
    def total(self) -> float:
        return self.linear + self.attention


class StepLoad(NamedTuple):
    """What the steps of sessions take in a second: FLOPs, and the plans that they are divided into.

    There are at least as many plans as one session has steps, the `most` of any, and `full` plans
    that are as full as they can be.
    """

    flops: float = 0.0
    most: float = 0.0
    full: float = 0.0

    @property
    def plans(self) -> float:
        return max(self.most, self.full)

    def plus(self, other: "StepLoad") -> "StepLoad":
        """The load of both."""
        return StepLoad(
            self.flops + other.flops, max(self.most, other.most), self.full + other.full
        )


NO_STEPS = StepLoad()


@lru_cache(maxsize=4096)
def stage_step_cost(config: HeliosConfig, geometry: Geometry, stage: int, branches: int) -> float:
    """FLOPs of one denoise step at `stage`; guidance makes two branches."""
    return branches * forward_flops(config, geometry, stage).total


def forward_flops(config: HeliosConfig, geometry: Geometry, stage: int) -> Flops:
    """FLOPs of one forward at `stage` under one prompt.

    Prompt keys and values are cached and not counted. In the last layer history serves as keys
    and values only.
    """
    model = config.transformer
    history = geometry.history_tokens
    noise = geometry.noise_tokens(stage, config.stages)
    inner = layer_flops(model, history + noise, history + noise, noise)
    last = layer_flops(model, noise, history + noise, noise)
    patches = 2 * PATCH_DIM * model.inner_dim * patch_rows(geometry, noise)
    return Flops(
        (model.num_layers - 1) * inner.linear + last.linear + patches,
        (model.num_layers - 1) * inner.attention + last.attention,
    )


def layer_flops(model: TransformerConfig, queries: int, keys: int, noise: int) -> Flops:
    """FLOPs of one block for `queries` tokens that attend to `keys`, `noise` of them to text."""
    dim = model.inner_dim
    projections = 2 * dim * dim * (2 * queries + 2 * keys + 2 * noise)
    feed_forward = 4 * dim * model.ffn_dim * queries
    attention = 4 * dim * (queries * keys + noise * TYPICAL_PROMPT_TOKENS)
    return Flops(float(projections + feed_forward), float(attention))


def patch_rows(geometry: Geometry, noise: int) -> int:
    """Base patches that are embedded in a step, the output projection's included."""
    long, mid, short = geometry.long_tokens, geometry.mid_tokens, geometry.short_tokens
    return 64 * long + 8 * mid + short + 2 * noise


def encode_cost(num_prompts: int, reference: VideoRequest | None = None) -> float:
    """Pixels that stand for encoding prompts, and the image or video of `reference`.

    An image is encoded alone and as a still chunk, a video by its first frame and its last chunks.
    """
    prompts = float(num_prompts * PROMPT_PIXELS)
    if reference is None:
        return prompts
    chunks = 1
    if reference.video is not None:
        whole, history = reference.video.count // CHUNK_FRAMES, -(-HISTORY_FRAMES // CHUNK_LATENTS)
        chunks = whole if reference.keep_input_latents else min(whole, history)
    params = reference.params
    return prompts + (1 + chunks * CHUNK_FRAMES) * params.width * params.height


class SessionCost:
    """Costs that follow from a session's parameters alone, computed once.

    By stage: `steps` are the FLOPs of a denoise step, `tokens` what it adds to a batch, history and
    noise under every prompt. `chunk` is the FLOPs of any chunk but the first, `chunk_steps` its
    steps, `rate` the FLOP/s that playing the video in real time takes. `decode` is the pixels of a
    chunk, all of which are decoded even if the last chunk is shorter, and `decode_rate` the pixels
    a second in real time. `peak_blocks` is the most history blocks that the session ever holds.
    """

    def __init__(self, config: HeliosConfig, geometry: Geometry, params: ResolvedParams) -> None:
        self.params = params
        branches = 2 if params.is_guided else 1
        stages = range(config.stages)
        self.steps = tuple(stage_step_cost(config, geometry, stage, branches) for stage in stages)
        self.tokens = tuple(
            branches * (geometry.history_tokens + geometry.noise_tokens(stage, config.stages))
            for stage in stages
        )
        self._counts = (params.stage_steps(0), params.stage_steps(1))
        """Steps of each stage, of the first chunk and of the others."""
        self.chunk = self.of_chunk(1)
        self.chunk_steps = sum(params.stage_steps(1))
        self.rate = self.chunk * params.fps / CHUNK_FRAMES
        self.decode = float(CHUNK_FRAMES * params.width * params.height)
        self.decode_rate = self.decode * params.fps / CHUNK_FRAMES
        self.peak_blocks = HistoryManager.peak_blocks(geometry)

    def full_plans(self, limits: BatchLimits) -> float:
        """Plans for a chunk if each is filled with sessions of this kind."""
        counts = self.params.stage_steps(1)
        return sum(
            count / limits.sessions_of(tokens)
            for count, tokens in zip(counts, self.tokens, strict=True)
        )

    def load(self, limits: BatchLimits) -> StepLoad:
        """What its steps take a second if it plays in real time."""
        chunks = self.params.fps / CHUNK_FRAMES
        return StepLoad(self.rate, self.chunk_steps * chunks, self.full_plans(limits) * chunks)

    def of_chunk(self, chunk: int) -> float:
        """FLOPs of all steps of a chunk."""
        return self.left_in_chunk(StepCursor(chunk, 0, 0))

    def left_in_chunk(self, cursor: StepCursor) -> float:
        """FLOPs from `cursor` to the end of its chunk."""
        counts = self._counts[cursor.chunk > 0]
        left = (counts[cursor.stage] - cursor.step, *counts[cursor.stage + 1 :])
        return sum(
            count * cost for count, cost in zip(left, self.steps[cursor.stage :], strict=True)
        )

    def steps_left(self, cursor: StepCursor) -> int:
        """Steps from `cursor` to the end of the video."""
        later = self.params.num_chunks - cursor.chunk - 1
        if later < 0:
            return 0
        left = self.params.stage_steps(cursor.chunk)[cursor.stage :]
        return sum(left) - cursor.step + later * self.chunk_steps

    def left(self, cursor: StepCursor) -> float:
        """FLOPs from `cursor` to the end of the video."""
        later = self.params.num_chunks - cursor.chunk - 1
        return 0.0 if later < 0 else self.left_in_chunk(cursor) + later * self.chunk
