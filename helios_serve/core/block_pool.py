"""Block ids of one worker's history pool, with reference counts."""

from collections.abc import Iterable, Sequence

from helios_serve.messages import NULL_BLOCK


class BlockPool:
    """Allocates and frees block ids in O(1) each; block 0 is the null block, never allocated.

    A block is immutable once written, so it is shared by counting references.
    """

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 2:
            raise ValueError(f"got {num_blocks} blocks, expected at least 2 (block 0 is the null)")
        self.num_blocks = num_blocks
        self._free = list(range(num_blocks - 1, 0, -1))
        self._ref_cnt = [0] * num_blocks

    @property
    def num_free(self) -> int:
        return len(self._free)

    def allocate(self, count: int) -> list[int]:
        """`count` blocks with one reference each; the caller has checked `num_free`."""
        assert count <= self.num_free, f"asked for {count} blocks, {self.num_free} are free"
        blocks = [self._free.pop() for _ in range(count)]
        for block in blocks:
            self._ref_cnt[block] = 1
        return blocks

    def share(self, blocks: Iterable[int]) -> None:
        """Take one more reference to each block."""
        for block in blocks:
            if block != NULL_BLOCK:
                assert self._ref_cnt[block] > 0, f"block {block} is free and cannot be shared"
                self._ref_cnt[block] += 1

    def free(self, blocks: Iterable[int]) -> None:
        """Drop one reference to each block; the last one frees it."""
        for block in blocks:
            if block == NULL_BLOCK:
                continue
            assert self._ref_cnt[block] > 0, f"block {block} was freed twice"
            self._ref_cnt[block] -= 1
            if self._ref_cnt[block] == 0:
                self._free.append(block)

    def check_integrity(self, tables: Sequence[Sequence[int]]) -> None:
        """Raise AssertionError unless counts are exactly the references held by `tables`."""
        expected = [0] * self.num_blocks
        for table in tables:
            for block in table:
                expected[block] += block != NULL_BLOCK
        assert expected == self._ref_cnt, "reference counts differ from the block tables"
        assert len(set(self._free)) == len(self._free), "a block is free twice"
        held = {block for block, count in enumerate(expected) if count}
        assert held.isdisjoint(self._free), "a held block is free"
        assert len(held) + len(self._free) == self.num_blocks - 1, "a block was lost"
