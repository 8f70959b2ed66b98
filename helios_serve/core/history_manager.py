"""The histories of sessions in the blocks of one worker's pool."""

from array import array
from collections import Counter
from collections.abc import Iterable
from itertools import chain, repeat

from helios_serve.messages import NULL_BLOCK, ChunkBlocks
from helios_serve.model_config import CHUNK_LATENTS, HISTORY_FRAMES, WINDOW_FRAMES, Geometry

Frame = tuple[int, ...]
"""The block ids of one latent frame, tile by tile, row major."""


class BlockPool:
    """Allocates and frees frames of block ids; block 0 is the null block, never allocated.

    Blocks are immutable once written, so frames are shared by counting references. The blocks of a
    frame are shared and freed together, so the count is that of its first block. Ids and counts are
    kept in arrays, 8 bytes for each block that was ever used: there may be thousands of workers.
    """

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 2:
            raise ValueError(f"got {num_blocks} blocks, expected at least 2 (block 0 is the null)")
        self.num_blocks = num_blocks
        self._freed = array("i")
        self._ref_cnt = array("i", [0])
        """References to frames, by their first blocks. It has the null block and all that were
        ever used; the others follow in order."""

    @property
    def num_free(self) -> int:
        return len(self._freed) + self.num_blocks - len(self._ref_cnt)

    def allocate(self, count: int, size: int) -> list[Frame]:
        """`count` frames of `size` blocks with one reference each; the caller has checked
        `num_free`.
        """
        needed = count * size
        assert needed <= self.num_free, f"asked for {needed} blocks, {self.num_free} are free"
        kept = max(0, len(self._freed) - needed)
        blocks = self._freed[kept:].tolist()
        blocks.reverse()
        del self._freed[kept:]
        unused, missing = len(self._ref_cnt), needed - len(blocks)
        self._ref_cnt.extend(repeat(0, missing))
        blocks.extend(range(unused, unused + missing))
        frames = [tuple(blocks[start : start + size]) for start in range(0, needed, size)]
        for frame in frames:
            self._ref_cnt[frame[0]] = 1
        return frames

    def share(self, frame: Frame) -> None:
        """Take one more reference to a frame."""
        first = frame[0]
        if first != NULL_BLOCK:
            assert self._ref_cnt[first] > 0, f"block {first} is free and cannot be shared"
            self._ref_cnt[first] += 1

    def free(self, frame: Frame) -> None:
        """Drop one reference to a frame; the last one frees its blocks."""
        first = frame[0]
        if first == NULL_BLOCK:
            return
        assert self._ref_cnt[first] > 0, f"block {first} was freed twice"
        self._ref_cnt[first] -= 1
        if self._ref_cnt[first] == 0:
            self._freed.extend(frame)

    def check_integrity(self, frames: Iterable[Frame]) -> None:
        """Raise AssertionError unless counts are exactly the references held by `frames`."""
        references = Counter(frame for frame in frames if frame[0] != NULL_BLOCK)
        expected = [0] * len(self._ref_cnt)
        for frame, count in references.items():
            expected[frame[0]] = count
        assert expected == self._ref_cnt.tolist(), "reference counts differ from the block tables"
        held = [block for frame in references for block in frame]
        assert len(set(held)) == len(held), "frames have a block in common"
        assert len(set(self._freed)) == len(self._freed), "a block is free twice"
        assert set(held).isdisjoint(self._freed), "a held block is free"
        assert len(held) + len(self._freed) == len(self._ref_cnt) - 1, "a block was lost"
        assert len(self._ref_cnt) <= self.num_blocks, "there are more blocks than memory"


class History:
    """The frames that one session still needs: its anchor and the last 19."""

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry
        self.blocks_per_frame = geometry.blocks_per_frame
        self.null_frame: Frame = (NULL_BLOCK,) * self.blocks_per_frame
        self.anchor: Frame = self.null_frame
        self.frames: list[Frame] = []
        self.pending: list[Frame] = []
        self.next_anchor: Frame | None = None

    @property
    def window(self) -> tuple[int, ...]:
        """The flat block table of the anchor and the last 19 frames, null frames in front."""
        missing = [self.null_frame] * (HISTORY_FRAMES - len(self.frames))
        return tuple(chain.from_iterable((self.anchor, *missing, *self.frames)))


class HistoryManager:
    """Allocates, slides and frees histories; a slide moves pointers and copies nothing."""

    def __init__(self, num_blocks: int) -> None:
        self.pool = BlockPool(num_blocks)
        self._histories: dict[str, History] = {}

    @staticmethod
    def peak_blocks(geometry: Geometry) -> int:
        """The most blocks one session ever holds: for its anchor, 19 frames, and one chunk."""
        return (WINDOW_FRAMES + CHUNK_LATENTS) * geometry.blocks_per_frame

    def open(self, session_id: str, geometry: Geometry, *, initial_frames: int = 0) -> ChunkBlocks:
        """Start a history; with `initial_frames` also an anchor of its own (I2V, V2V).

        Returns blocks to write the anchor (`window`) and the initial frames (`append`) to.
        """
        assert session_id not in self._histories, f"session {session_id} has a history already"
        history = self._histories[session_id] = History(geometry)
        if not initial_frames:
            return ChunkBlocks((), ())
        (history.anchor,) = self.pool.allocate(1, geometry.blocks_per_frame)
        history.frames = self.pool.allocate(initial_frames, geometry.blocks_per_frame)
        return ChunkBlocks(history.anchor, tuple(chain.from_iterable(history.frames)))

    def begin_chunk(self, session_id: str, *, new_anchor: bool) -> ChunkBlocks:
        """The window that the chunk sees, and new blocks for its own frames.

        With `new_anchor` the first of these frames becomes the anchor.
        """
        history = self._histories[session_id]
        assert not history.pending, f"session {session_id} is in the middle of a chunk"
        history.pending = self.pool.allocate(CHUNK_LATENTS, history.blocks_per_frame)
        history.next_anchor = history.pending[0] if new_anchor else None
        append = tuple(chain.from_iterable(history.pending))
        return ChunkBlocks(history.window, append, new_anchor)

    def end_chunk(self, session_id: str) -> None:
        """Slide the windows over the finished chunk."""
        history = self._histories[session_id]
        if history.next_anchor is not None:
            self.pool.free(history.anchor)
            history.anchor = history.next_anchor
            self.pool.share(history.anchor)
        frames = history.frames + history.pending
        for frame in frames[:-HISTORY_FRAMES]:
            self.pool.free(frame)
        history.frames, history.pending = frames[-HISTORY_FRAMES:], []

    def fork(self, parent_id: str, child_id: str) -> ChunkBlocks:
        """Start `child_id` with the parent's history at its last chunk edge; both share its blocks.

        The blocks of a chunk that the parent has begun since are not shared. Returns the shared
        blocks as `open` returns new ones.
        """
        parent = self._histories[parent_id]
        assert child_id not in self._histories, f"session {child_id} has a history already"
        child = self._histories[child_id] = History(parent.geometry)
        child.anchor, child.frames = parent.anchor, list(parent.frames)
        for frame in (child.anchor, *child.frames):
            self.pool.share(frame)
        return ChunkBlocks(child.anchor, tuple(chain.from_iterable(child.frames)))

    def close(self, session_id: str) -> None:
        history = self._histories.pop(session_id)
        for frame in (history.anchor, *history.frames, *history.pending):
            self.pool.free(frame)

    def check_integrity(self) -> None:
        self.pool.check_integrity(
            frame
            for history in self._histories.values()
            for frame in (history.anchor, *history.frames, *history.pending)
        )
