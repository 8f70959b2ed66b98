"""Inputs of a packed forward, which concatenates segments of any stage, size and prompt.

A pack segment is one session with one prompt: its history tokens (long | mid | short), then its
noise tokens. Guidance adds a second segment with the negative prompt to the same pack.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from helios_serve.kernels.fp8 import Quantized, Rows
from helios_serve.kernels.rope import PackedRope, Rope
from helios_serve.kernels.rows import Lengths, PackRows, Run, join, upload
from helios_serve.model_executor.models.helios.exchange import Exchange, Ranks, share_rope
from helios_serve.model_executor.models.helios.lora import AdapterRows, LoraAdapter

RowsT = TypeVar("RowsT", Tensor, Quantized, Rows)

HISTORY_TIMESTEP = 0.0
"""The timestep of all history tokens."""


@dataclass(frozen=True)
class TextContext:
    """Cross-attention keys and values of one prompt, for all layers.

    `keys` and `values` hold one (rows, heads, head_dim) tensor per layer. The padding rows of a
    prompt are identical, so a few rows represent all of them: `bias` (rows,), in the dtype of the
    keys, is added to the attention logits. It is 0 for the prompt's tokens, and for a padding row
    the logarithm of the number of rows that it represents.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    bias: Tensor | None

    @property
    def key_bias(self) -> Tensor:
        """`bias`, or zeros if it is None."""
        keys = self.keys[0]
        return keys.new_zeros(len(keys)) if self.bias is None else self.bias

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))


class HistoryPatches(NamedTuple):
    """The patches of one history: long (n, 4096), mid (n, 512), short (n, 64)."""

    long: Tensor
    mid: Tensor
    short: Tensor

    @property
    def tokens(self) -> int:
        return len(self.long) + len(self.mid) + len(self.short)


@dataclass(frozen=True)
class PackSegment:
    """One session with one prompt in a pack.

    - `history`: its history patches.
    - `noise`: its latents as rows of base patches, (tokens, 64).
    - `rope`: the rotary entries of history and noise.
    - `timestep`: the timestep of the noise tokens; history always has timestep 0.
    - `text`: the keys and values of its prompt.
    - `adapter`: its LoRA adapter.
    """

    history: HistoryPatches
    noise: Tensor
    rope: Rope
    timestep: float
    text: TextContext
    adapter: LoraAdapter | None = None


class Span(NamedTuple):
    """The rows of a segment in a packed sequence: history [start, noise), noise [noise, stop)."""

    start: int
    noise: int
    stop: int

    @property
    def rows(self) -> slice:
        return slice(self.start, self.stop)

    @property
    def noise_rows(self) -> slice:
        return slice(self.noise, self.stop)


class TableRows(NamedTuple):
    """The rows of a segment's history and noise tokens in the modulation tables."""

    history: int
    noise: int


class TimeRows(NamedTuple):
    """The rows of the modulation tables: their timesteps, and the adapters of rows."""

    timesteps: Tensor
    lora: AdapterRows


@dataclass(frozen=True)
class PackLayout:
    """The layout of a packed sequence.

    `spans` holds the rows of each segment, and `table_rows` its rows in the modulation tables.
    """

    spans: Sequence[Span]
    table_rows: Sequence["TableRows"]
    device: torch.device
    adapters: Sequence[LoraAdapter | None] = field(default=())
    exchange: Exchange | None = None
    """With context parallelism, in which the sequence is one rank's share of the pack."""
    noise_exchange: Exchange | None = None

    @cached_property
    def rows(self) -> PackRows:
        """Runs of consecutive rows that have the same timestep."""
        runs = []
        for span, row in zip(self.spans, self.table_rows, strict=True):
            if span.noise > span.start:
                runs.append(Run(span.start, span.noise, row.history, is_history=True))
            runs.append(Run(span.noise, span.stop, row.noise))
        return PackRows(runs, self.device)

    @cached_property
    def lengths(self) -> Lengths:
        return Lengths([span.stop - span.start for span in self.spans], self.device)

    @cached_property
    def lora(self) -> AdapterRows:
        """The rows of each segment that has an adapter."""
        return [
            (span.rows, adapter)
            for span, adapter in zip(self.spans, self.adapters, strict=True)
            if adapter is not None
        ]

    @cached_property
    def noise_only(self) -> "PackLayout":
        """The layout of the sequence of the noise tokens alone."""
        spans, start = [], 0
        for span in self.spans:
            stop = start + span.stop - span.noise
            spans.append(Span(start, start, stop))
            start = stop
        own = self.noise_exchange
        return PackLayout(spans, self.table_rows, self.device, self.adapters, own, own)


def take_noise(x: RowsT, layout: PackLayout) -> RowsT:
    """Return the rows of the noise tokens, concatenated; a view if there is one segment."""
    if all(span.start == span.noise for span in layout.spans):
        return x
    if isinstance(x, Quantized):
        values, scale = (take_noise(part, layout) for part in (x.values.view(torch.uint8), x.scale))
        return Quantized(values.view(x.values.dtype), scale)
    return join([x[span.noise_rows] for span in layout.spans])


class PackedText:
    """The prompts of a pack's segments, concatenated.

    Keys and values are concatenated one layer at a time, which limits the memory that they take.
    """

    def __init__(self, texts: Sequence[TextContext], device: torch.device) -> None:
        self.texts = texts
        self.lengths = Lengths([len(text.keys[0]) for text in texts], device)
        self.bias = None
        if any(text.bias is not None for text in texts):
            self.bias = join([text.key_bias for text in texts])

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Return the keys and values of a layer: (rows, heads, head_dim) each."""
        return (
            join([text.keys[index] for text in self.texts]),
            join([text.values[index] for text in self.texts]),
        )


@dataclass(frozen=True)
class Pack:
    """A packed sequence: segments, layout, rotary entries and prompts.

    `rope` has the entries of all tokens, and `noise_rope` those of the noise tokens.
    """

    segments: Sequence[PackSegment]
    layout: PackLayout
    rope: PackedRope
    noise_rope: PackedRope
    text: PackedText


def make_pack(segments: Sequence[PackSegment], ranks: Ranks | None = None) -> tuple[Pack, TimeRows]:
    """Pack segments. Returns the pack, and the rows of the modulation tables.

    With `ranks` the pack holds this rank's share of each segment.
    """
    device, whole = segments[0].noise.device, segments
    if ranks is not None:
        segments = [share_segment(segment, ranks) for segment in whole]
    layout, times = lay_out(segments, device)
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
    return pack, times


def kinds_of(segment: PackSegment) -> tuple[Tensor, ...]:
    """Return a segment's tokens by kind: long, mid, short, noise."""
    return (*segment.history, segment.noise)


def share_segment(segment: PackSegment, ranks: Ranks) -> PackSegment:
    """Return this rank's share of a segment: a part of each kind of its tokens."""
    kinds = kinds_of(segment)
    long, mid, short, noise = (rows[ranks.share(len(rows))] for rows in kinds)
    rope = share_rope(segment.rope, tuple(map(len, kinds)), ranks)
    return replace(segment, history=HistoryPatches(long, mid, short), noise=noise, rope=rope)


def rows_by_rank(
    segments: Sequence[PackSegment], ranks: Ranks, *, noise_only: bool
) -> list[list[int]]:
    """Return the number of rows of each segment by rank: [rank][segment]."""

    def rows(segment: PackSegment, rank: int) -> int:
        kinds = [segment.noise] if noise_only else kinds_of(segment)
        shares = [ranks.share(len(part), rank) for part in kinds]
        return sum(share.stop - share.start for share in shares)

    return [[rows(segment, rank) for segment in segments] for rank in range(ranks.size)]


def lay_out(segments: Sequence[PackSegment], device: torch.device) -> tuple[PackLayout, TimeRows]:
    """Return the layout of a pack, and the rows of its modulation tables.

    Segments with the same timestep share a row, unless an adapter changes what it means.
    """
    timesteps: dict[LoraAdapter | None, list[float]] = {}
    for segment in segments:
        timesteps.setdefault(time_adapter(segment), [HISTORY_TIMESTEP]).append(segment.timestep)
    rows: list[tuple[LoraAdapter | None, float]] = []
    lora = []
    for adapter, given in timesteps.items():
        start = len(rows)
        rows += [(adapter, timestep) for timestep in sorted(set(given))]
        if adapter is not None:
            lora.append((slice(start, len(rows)), adapter))
    row_of = {row: index for index, row in enumerate(rows)}
    table_rows, spans, start = [], [], 0
    for segment in segments:
        noise = start + segment.history.tokens
        spans.append(Span(start, noise, noise + len(segment.noise)))
        start = spans[-1].stop
        adapter = time_adapter(segment)
        table_rows.append(
            TableRows(row_of[adapter, HISTORY_TIMESTEP], row_of[adapter, segment.timestep])
        )
    adapters = [segment.adapter for segment in segments]
    times = torch.tensor([timestep for _, timestep in rows])
    return (
        PackLayout(spans, table_rows, device, adapters),
        TimeRows(upload(times, device), lora),
    )


def time_adapter(segment: PackSegment) -> LoraAdapter | None:
    """Return the segment's adapter if it changes the embedding of timesteps."""
    adapter = segment.adapter
    return adapter if adapter is not None and adapter.changes_time else None


def log_parts(count: int, dtype: torch.dtype) -> Tensor:
    """Return numbers of `dtype` whose exponentials add up to `count` within a relative 1e-6.

    Attention kernels require a bias in the dtype of the keys. In bfloat16, log(count) is rounded so
    much that its exponential differs by up to 1 %, so the remainder gets a row of its own, and so
    on.
    """
    parts: list[float] = []
    rest = float(count)
    while rest > 1e-6 * count:
        part = torch.tensor(math.log(rest)).to(dtype)
        if part.double().exp() > rest * (1 + 1e-6):
            part = torch.nextafter(part, part.new_tensor(-torch.inf))
        parts.append(part.item())
        rest -= part.double().exp().item()
    return torch.tensor(parts, dtype=dtype)
