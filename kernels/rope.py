"""Rotary embeddings by axis: three small indices per token instead of an entry per token."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from helios_serve.kernels.rows import join


@dataclass(frozen=True, eq=False)
class Rope:
    """Rotary entries of a grid of tokens.

    Each channel pair rotates with one axis only: frame, row or column. So pair j of a token is
    `table[places[token, axis of j], j]`, with `table` complex64 (positions, pairs) and `places`
    int32 (tokens, 3). `pairs` counts the pairs of each axis.
    """

    table: Tensor
    places: Tensor
    pairs: tuple[int, int, int]

    @cached_property
    def entries(self) -> Tensor:
        """The expanded entries: complex64 (tokens, pairs)."""
        columns = torch.split(self.table, list(self.pairs), dim=1)
        return torch.cat(
            [axis[self.places[:, index].long()] for index, axis in enumerate(columns)], dim=1
        )


class PackedRope:
    """Rotary entries of a packed sequence: rows of several `Rope`s, concatenated.

    `table` and `places` are as in `Rope`, with the tables of distinct ropes end to end.
    """

    def __init__(self, parts: Sequence[tuple[Rope, slice]]) -> None:
        self.parts = parts
        self.pairs = parts[0][0].pairs

    @cached_property
    def entries(self) -> Tensor:
        return join([rope.entries[rows] for rope, rows in self.parts])

    @cached_property
    def table(self) -> Tensor:
        return join([rope.table for rope in self._distinct])

    @cached_property
    def places(self) -> Tensor:
        first, start = {}, 0
        for rope in self._distinct:
            first[id(rope)] = start
            start += len(rope.table)
        return join(
            [
                rope.places[rows] + first[id(rope)] if first[id(rope)] else rope.places[rows]
                for rope, rows in self.parts
            ]
        )

    @cached_property
    def _distinct(self) -> list[Rope]:
        return list({id(rope): rope for rope, _ in self.parts}.values())
