"""How long counted work would take on a GPU, and what a layout of several GPUs would deliver.

A prediction adds up what each kind of work takes at its rate. Shares say what part of a rate real
shapes reach; they are estimates too, until a run on a GPU replaces them.
"""

from collections.abc import Iterator
from typing import NamedTuple

from helios_serve.core.gpus import Gpu
from helios_serve.model_config import CHUNK_FRAMES

LAYER_SHARE = 0.94
"""Of the rate of a large product, for those of a layer: the last wave of tiles is not full."""
CONV_SHARE = 0.65
"""Of the rate of a large product, for convolutions of the VAE."""
COPY_SHARE = 0.78
"""Of the rate of a copy, for elementwise kernels."""
LAUNCH_GAP = 1.5e-6
"""Seconds between two kernels of a stream."""
CHUNK_GAP = 8e-3
"""Seconds in which a GPU waits for its host at the end of a chunk."""
ENCODE_SECONDS = 0.7
"""CPU-seconds to encode a chunk at 640x384 as H.264, the frames of which are like noise."""


class Amounts(NamedTuple):
    """Work by kind: FLOPs of matmuls, attention and convolutions, bytes of all else, launches."""

    matmul: float = 0.0
    attention: float = 0.0
    convolution: float = 0.0
    elementwise: float = 0.0
    launches: int = 0

    def times(self, count: float) -> "Amounts":
        matmul, attention, convolution, elementwise, launches = self
        return Amounts(
            count * matmul,
            count * attention,
            count * convolution,
            count * elementwise,
            round(count * launches),
        )

    def plus(self, other: "Amounts") -> "Amounts":
        return Amounts(
            self.matmul + other.matmul,
            self.attention + other.attention,
            self.convolution + other.convolution,
            self.elementwise + other.elementwise,
            self.launches + other.launches,
        )


class Times(NamedTuple):
    """Seconds by kind of work."""

    matmul: float
    attention: float
    convolution: float
    elementwise: float
    gaps: float

    @property
    def total(self) -> float:
        return sum(self)


def predict(amounts: Amounts, gpu: Gpu, *, fp8: bool = False, ranks: int = 1) -> Times:
    """Return the seconds of `amounts` on a GPU, or on `ranks` of them that share the tokens.

    Each rank launches every kernel.
    """
    product = gpu.matmul * (gpu.fp8_speedup if fp8 else 1.0)
    return Times(
        amounts.matmul / (LAYER_SHARE * product) / ranks,
        amounts.attention / gpu.attention / ranks,
        amounts.convolution / (CONV_SHARE * gpu.matmul) / ranks,
        amounts.elementwise / (COPY_SHARE * gpu.copy) / ranks,
        amounts.launches * LAUNCH_GAP,
    )


class ChunkWork(NamedTuple):
    """The work of one chunk, and the bytes that ranks would exchange for it in one piece.

    `exchanged` are queries, keys, values and results of self-attention in all layers and steps.
    """

    denoise: Amounts
    decode: Amounts
    exchanged: float


class Layout(NamedTuple):
    """A way to use several GPUs, with the flags of `serve` that make it.

    `denoisers` workers of `ranks` GPUs each; `decoders` GPUs of their own decode, 0: the same.
    """

    name: str
    flags: str
    denoisers: int
    ranks: int = 1
    decoders: int = 0


class LayoutRate(NamedTuple):
    """What a layout delivers in frames a second, and what bounds it.

    `worker_fps` is what one worker denoises, and `session_fps` what a session alone gets.
    """

    layout: Layout
    total_fps: float
    worker_fps: float
    session_fps: float
    bound: str

    def realtime_sessions(self, fps: float) -> int:
        """Sessions that play at `fps` while they are made; each stays on its worker."""
        by_worker = self.layout.denoisers * int(self.worker_fps // fps)
        return min(by_worker, int(self.total_fps // fps))


def layouts(gpus: int, heads: int) -> Iterator[Layout]:
    """Yield the layouts of `gpus` GPUs: workers alone, decoders apart, and context parallel."""
    yield Layout("data parallel", f"--workers {gpus}", gpus)
    for decoders in range(1, gpus // 2 + 1):
        denoisers = gpus - decoders
        flags = f"--workers {denoisers}:denoise --workers {decoders}:encode+decode"
        yield Layout(f"decode on {decoders} of {gpus}", flags, denoisers, decoders=decoders)
    for ranks in range(2, gpus + 1):
        if gpus % ranks == 0 and heads % ranks == 0:
            flags = f"--workers {gpus // ranks} --context-parallel {ranks}"
            yield Layout(f"context parallel {ranks}", flags, gpus // ranks, ranks)


def rate_of(layout: Layout, work: ChunkWork, gpu: Gpu, *, fp8: bool = False) -> LayoutRate:
    """Predict what a layout delivers."""
    ranks = layout.ranks
    denoise = predict(work.denoise, gpu, fp8=fp8, ranks=ranks).total + CHUNK_GAP
    # A rank keeps its share of the heads and sends the rest of its tokens.
    sent = work.exchanged * (ranks - 1) / ranks**2 / gpu.link
    denoise += sent
    decode = predict(work.decode, gpu).total
    if not layout.decoders:
        seconds = denoise + decode
        fps = CHUNK_FRAMES / seconds
        return LayoutRate(
            layout, layout.denoisers * fps, fps, fps, "denoising and decoding in turns"
        )
    made, shown = layout.denoisers / denoise, layout.decoders / decode
    # A session is denoised by one worker, and its chunks are decoded one after the other.
    session = CHUNK_FRAMES / max(denoise, decode)
    bound = "denoising" if made <= shown else "decoding"
    total = CHUNK_FRAMES * min(made, shown)
    return LayoutRate(layout, total, CHUNK_FRAMES / denoise, session, bound)
