"""What one packed forward takes: segments of any stage, size and prompt, end to end.

The packed sequence is, segment after segment, its history tokens (long | mid | short) and then its
noise tokens. A segment is one session under one prompt: guidance adds a second segment, for the
negative prompt, to the same pack.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from torch import Tensor

from helios_serve.kernels.reference import Run
from helios_serve.model_executor.models.helios.lora import LoraAdapter


@dataclass(frozen=True)
class TextContext:
    """Cross-attention keys and values of one prompt, for every layer.

    `keys` and `values` hold a (rows, heads, head_dim) tensor a layer. The padding rows of a prompt
    are identical, so a few stand for all of them: `bias` (rows,), in the dtype of the keys, is 0
    for a real row, and for those the logarithms of how many they stand for.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    bias: Tensor | None

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))


class HistoryPatches(NamedTuple):
    """Patch rows of one history: long (n, 4096), mid (n, 512), short (n, 64)."""

    long: Tensor
    mid: Tensor
    short: Tensor

    @property
    def tokens(self) -> int:
        return len(self.long) + len(self.mid) + len(self.short)


@dataclass(frozen=True)
class Segment:
    """One session's share of a pack.

    `noise` is (tokens, 64) rows of the latents, `rope` complex64 (history + noise tokens,
    head_dim / 2), `timestep` the model's t for the noise tokens (history always takes 0).
    """

    history: HistoryPatches
    noise: Tensor
    rope: Tensor
    timestep: float
    text: TextContext
    adapter: LoraAdapter | None = None


class Span(NamedTuple):
    """Rows of a segment in a packed sequence: history [start, noise), noise [noise, stop)."""

    start: int
    noise: int
    stop: int

    @property
    def rows(self) -> slice:
        return slice(self.start, self.stop)

    @property
    def noise_rows(self) -> slice:
        return slice(self.noise, self.stop)


@dataclass(frozen=True)
class PackLayout:
    """Row arithmetic of one packed sequence; `table_rows` names each segment's row of modulation.

    Row 0 of the table is timestep 0.
    """

    spans: Sequence[Span]
    table_rows: Sequence[int]
    adapters: Sequence[LoraAdapter | None] = field(default=())

    @cached_property
    def runs(self) -> list[Run]:
        """Contiguous rows with one timestep each."""
        runs = []
        for span, row in zip(self.spans, self.table_rows, strict=True):
            if span.noise > span.start:
                runs.append(Run(span.start, span.noise, 0))
            runs.append(Run(span.noise, span.stop, row))
        return runs

    @cached_property
    def lora(self) -> list[tuple[slice, LoraAdapter]]:
        return [
            (span.rows, adapter)
            for span, adapter in zip(self.spans, self.adapters, strict=True)
            if adapter is not None
        ]

    @cached_property
    def noise_only(self) -> "PackLayout":
        """The layout of the sequence that holds just the noise tokens."""
        spans, start = [], 0
        for span in self.spans:
            stop = start + span.stop - span.noise
            spans.append(Span(start, start, stop))
            start = stop
        return PackLayout(spans, self.table_rows, self.adapters)


def lay_out(segments: Sequence[Segment]) -> tuple[PackLayout, list[float]]:
    """The layout of a pack, and the distinct timesteps behind row 0 of its modulation table."""
    timesteps = sorted({segment.timestep for segment in segments})
    row_of = {timestep: row for row, timestep in enumerate(timesteps, start=1)}
    spans, start = [], 0
    for segment in segments:
        noise = start + segment.history.tokens
        spans.append(Span(start, noise, noise + len(segment.noise)))
        start = spans[-1].stop
    return PackLayout(
        spans,
        [row_of[segment.timestep] for segment in segments],
        [segment.adapter for segment in segments],
    ), timesteps
