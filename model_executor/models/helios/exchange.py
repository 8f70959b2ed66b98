"""Context parallelism: the ranks of a group share each pack (DeepSpeed-Ulysses, arXiv 2309.14509).

Each rank holds a share of the history and noise tokens of every segment, which suffices for all
layers except self-attention. Before self-attention an all-to-all turns a share of the tokens with
all heads into all tokens with a share of the heads; after it another one reverses this.
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
    """This process's rank in the group that shares its packs."""

    rank: int
    size: int
    group: dist.ProcessGroup
    control: dist.ProcessGroup
    """A gloo group of the same ranks, for tensors on the host."""

    def share(self, length: int, rank: int | None = None) -> slice:
        """Return the rows, of `length`, that a rank takes; None is this rank."""
        own = self.rank if rank is None else rank
        return slice(length * own // self.size, length * (own + 1) // self.size)

    def smallest(self, number: int) -> int:
        """Return the minimum of the numbers that the ranks pass."""
        shared = torch.tensor(number)
        dist.all_reduce(shared, dist.ReduceOp.MIN, group=self.control)
        return int(shared)

    def check_same(self, what: object) -> None:
        """Raise RuntimeError unless all ranks pass equal values: the next exchange would hang."""
        number = zlib.crc32(repr(what).encode())
        if self.smallest(number) != number or self.smallest(-number) != -number:
            raise RuntimeError("the ranks of the worker are at different steps")


class Exchange:
    """Exchanges the rows of one pack between ranks.

    `rows[rank][segment]` is the number of rows that each rank holds of each segment. `own` is this
    rank's number of rows, and `by_rank` that of each rank.
    """

    def __init__(self, ranks: Ranks, rows: Sequence[Sequence[int]], device: torch.device) -> None:
        self.ranks = ranks
        self.rows = rows
        self.device = device
        self.by_rank = [sum(own) for own in rows]
        self.own = self.by_rank[ranks.rank]

    @cached_property
    def lengths(self) -> Lengths:
        """The lengths of the whole segments."""
        return Lengths([sum(own) for own in zip(*self.rows, strict=True)], self.device)

    def to_heads(self, x: Tensor) -> Tensor:
        """Own rows, all heads (own, heads, dim) -> all rows, own heads (rows, heads / N, dim)."""
        size = self.ranks.size
        heads = x.shape[1] // size
        sent = x.view(len(x), size, heads, -1).transpose(0, 1).flatten(0, 1).contiguous()
        got = self._all_to_all(sent, [self.own] * size, self.by_rank)
        return got.index_select(0, self._to_segments)

    def to_rows(self, mixed: Tensor) -> Tensor:
        """All rows, own heads (rows, heads / N * dim) -> own rows, all heads (own, heads * dim)."""
        size = self.ranks.size
        sent = mixed.index_select(0, self._to_ranks)
        got = self._all_to_all(sent, self.by_rank, [self.own] * size)
        return got.view(size, self.own, -1).transpose(0, 1).flatten(1)

    def collect(self, own: Tensor) -> Tensor:
        """Gather the rows of all ranks, on every rank: (own, dim) -> (rows, dim)."""
        size = self.ranks.size
        got = self._all_to_all(own.repeat(size, 1), [self.own] * size, self.by_rank)
        return got.index_select(0, self._to_segments)

    def _all_to_all(self, sent: Tensor, to_each: list[int], from_each: list[int]) -> Tensor:
        got = sent.new_empty(sum(from_each), *sent.shape[1:])
        dist.all_to_all_single(got, sent, from_each, to_each, group=self.ranks.group)
        return got

    @cached_property
    def _to_segments(self) -> Tensor:
        """For each row of the whole segments, its index in the concatenated rows of the ranks."""
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
    def _to_ranks(self) -> Tensor:
        return torch.argsort(self._to_segments)


@lru_cache(maxsize=24)
def share_rope(rope: Rope, lengths: tuple[int, ...], ranks: Ranks) -> Rope:
    """Return a rank's share of a segment's entries, given its numbers of long, mid, ... tokens."""
    parts = torch.split(rope.places, list(lengths))
    return replace(rope, places=torch.cat([part[ranks.share(len(part))] for part in parts]))
