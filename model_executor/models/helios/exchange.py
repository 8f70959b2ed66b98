"""One pack over several devices: each holds some tokens of every segment, or all of some heads.

Everything but self-attention works on tokens alone, so each rank of a group takes its share of
every segment's history and noise. Around self-attention, shares of all tokens with all heads
become all tokens with a share of the heads, and back (DeepSpeed-Ulysses, arXiv 2309.14509).
"""

import zlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from helios_serve.kernels.rope import Rope
from helios_serve.kernels.rows import Lengths, upload


class Ranks(NamedTuple):
    """A process's place among those that share its packs."""

    rank: int
    size: int
    group: dist.ProcessGroup
    control: dist.ProcessGroup
    """For numbers of the host, whatever the devices are."""

    def share(self, length: int, rank: int | None = None) -> slice:
        """The part of `length` rows that a rank takes, this one if none is said."""
        own = self.rank if rank is None else rank
        return slice(length * own // self.size, length * (own + 1) // self.size)

    def smallest(self, number: int) -> int:
        """The smallest of the numbers that all ranks bring."""
        shared = torch.tensor(number)
        dist.all_reduce(shared, dist.ReduceOp.MIN, group=self.control)
        return int(shared)

    def check_same(self, what: object) -> None:
        """Raise RuntimeError unless all ranks bring the same: what they do next would hang."""
        number = zlib.crc32(repr(what).encode())
        if self.smallest(number) != number or self.smallest(-number) != -number:
            raise RuntimeError("ranks are not at the same step any more")


class Exchange:
    """The rows of one pack by rank and segment, `rows[rank][segment]`, and how they travel."""

    def __init__(self, ranks: Ranks, rows: Sequence[Sequence[int]], device: torch.device) -> None:
        self.ranks = ranks
        self.rows = rows
        self.device = device
        self.by_rank = [sum(own) for own in rows]
        self.own = self.by_rank[ranks.rank]

    @cached_property
    def lengths(self) -> Lengths:
        """Whole segments, end to end."""
        return Lengths([sum(own) for own in zip(*self.rows, strict=True)], self.device)

    def to_heads(self, x: Tensor) -> Tensor:
        """Own rows of all heads (own, heads, dim) -> all rows of own (rows, heads / N, dim)."""
        size = self.ranks.size
        heads = x.shape[1] // size
        sent = x.view(len(x), size, heads, -1).transpose(0, 1).flatten(0, 1).contiguous()
        got = self._travel(sent, [self.own] * size, self.by_rank)
        return got.index_select(0, self._by_segment)

    def to_rows(self, mixed: Tensor) -> Tensor:
        """All rows of own heads (rows, heads / N * dim) -> own rows of all (own, heads * dim)."""
        size = self.ranks.size
        sent = mixed.index_select(0, self._back)
        got = self._travel(sent, self.by_rank, [self.own] * size)
        return got.view(size, self.own, -1).transpose(0, 1).flatten(1)

    def collect(self, own: Tensor) -> Tensor:
        """Own rows -> all rows, on every rank."""
        size = self.ranks.size
        got = self._travel(own.repeat(size, 1), [self.own] * size, self.by_rank)
        return got.index_select(0, self._by_segment)

    def _travel(self, sent: Tensor, to_each: list[int], from_each: list[int]) -> Tensor:
        got = sent.new_empty(sum(from_each), *sent.shape[1:])
        dist.all_to_all_single(got, sent, from_each, to_each, group=self.ranks.group)
        return got

    @cached_property
    def _by_segment(self) -> Tensor:
        """Where each row of whole segments is among the rows of rank after rank."""
        sizes = torch.tensor(self.rows)  # (ranks, segments)
        places = torch.split(torch.arange(int(sizes.sum())), sizes.flatten().tolist())
        segments = sizes.shape[1]
        order = [
            places[index]
            for first in range(segments)
            for index in range(first, len(places), segments)
        ]
        return upload(torch.cat(order), self.device)

    @cached_property
    def _back(self) -> Tensor:
        return torch.argsort(self._by_segment)


@lru_cache(maxsize=24)
def share_rope(rope: Rope, lengths: tuple[int, ...], ranks: Ranks) -> Rope:
    """A rank's part of a segment's entries; `lengths` are those of its kinds of tokens."""
    parts = torch.split(rope.places, list(lengths))
    return replace(rope, places=torch.cat([part[ranks.share(len(part))] for part in parts]))
