"""What one packed forward takes: segments of any stage, size and prompt, end to end.

The packed sequence is, segment after segment, its history tokens (long | mid | short) and then its
noise tokens. A segment is one session under one prompt: guidance adds a second segment, for the
negative prompt, to the same pack.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from helios_serve.kernels.rope import PackedRope, Rope
from helios_serve.kernels.rows import Lengths, PackRows, Run, join, upload
from helios_serve.model_executor.models.helios.exchange import Exchange, Ranks, share_rope
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
    def key_bias(self) -> Tensor:
        """`bias`, of zeros where there is none."""
        keys = self.keys[0]
        return keys.new_zeros(len(keys)) if self.bias is None else self.bias

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
class PackSegment:
    """One session's share of a pack.

    `noise` is (tokens, 64) rows of the latents, `rope` has the entries of history and noise,
    `timestep` is the model's t for the noise tokens (history always takes 0).
    """

    history: HistoryPatches
    noise: Tensor
    rope: Rope
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
    device: torch.device
    adapters: Sequence[LoraAdapter | None] = field(default=())
    exchange: Exchange | None = None
    """Where the sequence is a rank's share: what others have of it."""
    noise_exchange: Exchange | None = None

    @cached_property
    def rows(self) -> PackRows:
        """Contiguous rows with one timestep each."""
        runs = []
        for span, row in zip(self.spans, self.table_rows, strict=True):
            if span.noise > span.start:
                runs.append(Run(span.start, span.noise, 0))
            runs.append(Run(span.noise, span.stop, row))
        return PackRows(runs, self.device)

    @cached_property
    def lengths(self) -> Lengths:
        return Lengths([span.stop - span.start for span in self.spans], self.device)

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
        own = self.noise_exchange
        return PackLayout(spans, self.table_rows, self.device, self.adapters, own, own)


class PackedText:
    """The prompts of a pack's segments end to end; keys and values are joined a layer at a time."""

    def __init__(self, texts: Sequence[TextContext], device: torch.device) -> None:
        self.texts = texts
        self.lengths = Lengths([len(text.keys[0]) for text in texts], device)
        self.bias = None
        if any(text.bias is not None for text in texts):
            self.bias = join([text.key_bias for text in texts])

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values (rows, heads, head_dim)."""
        return (
            join([text.keys[index] for text in self.texts]),
            join([text.values[index] for text in self.texts]),
        )


@dataclass(frozen=True)
class Pack:
    """Segments as one sequence, and what blocks need to know; `noise_rope` is for noise alone."""

    segments: Sequence[PackSegment]
    layout: PackLayout
    rope: PackedRope
    noise_rope: PackedRope
    text: PackedText


def make_pack(segments: Sequence[PackSegment], ranks: Ranks | None = None) -> tuple[Pack, Tensor]:
    """Some segments as one pack, and the timestep of each row of its modulation table.

    With `ranks` it is this rank's share of them.
    """
    device, whole = segments[0].noise.device, segments
    if ranks is not None:
        segments = [share_segment(segment, ranks) for segment in whole]
    layout, timesteps = lay_out(segments, device)
    if ranks is not None:
        layout = replace(
            layout,
            exchange=Exchange(ranks, rows_by_rank(whole, ranks, noise_only=False), device),
            noise_exchange=Exchange(ranks, rows_by_rank(whole, ranks, noise_only=True), device),
        )
    ropes = [segment.rope for segment in segments]
    pack = Pack(
        segments,
        layout,
        rope=PackedRope([(rope, slice(None)) for rope in ropes]),
        noise_rope=PackedRope(
            [
                (rope, slice(span.noise - span.start, None))
                for rope, span in zip(ropes, layout.spans, strict=True)
            ]
        ),
        text=PackedText([segment.text for segment in segments], device),
    )
    return pack, upload(torch.tensor([0.0, *timesteps]), device)


def kinds_of(segment: PackSegment) -> tuple[Tensor, ...]:
    """A segment's rows, each kind of token by itself: long, mid, short, noise."""
    return (*segment.history, segment.noise)


def share_segment(segment: PackSegment, ranks: Ranks) -> PackSegment:
    """What a rank takes of a segment: a part of each kind of its tokens."""
    kinds = kinds_of(segment)
    long, mid, short, noise = (rows[ranks.share(len(rows))] for rows in kinds)
    rope = share_rope(segment.rope, tuple(map(len, kinds)), ranks)
    return replace(segment, history=HistoryPatches(long, mid, short), noise=noise, rope=rope)


def rows_by_rank(
    segments: Sequence[PackSegment], ranks: Ranks, *, noise_only: bool
) -> list[list[int]]:
    """How many rows of each segment each rank takes."""

    def rows(segment: PackSegment, rank: int) -> int:
        kinds = [segment.noise] if noise_only else kinds_of(segment)
        shares = [ranks.share(len(part), rank) for part in kinds]
        return sum(share.stop - share.start for share in shares)

    return [[rows(segment, rank) for segment in segments] for rank in range(ranks.size)]


def lay_out(
    segments: Sequence[PackSegment], device: torch.device
) -> tuple[PackLayout, list[float]]:
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
        device,
        [segment.adapter for segment in segments],
    ), timesteps
