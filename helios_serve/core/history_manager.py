"""The histories of sessions in the blocks of one worker's pool."""

from helios_serve.core.block_pool import BlockPool
from helios_serve.core.history import History
from helios_serve.messages import ChunkBlocks
from helios_serve.model_config import CHUNK_LATENTS, HISTORY_FRAMES, WINDOW_FRAMES, Geometry


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
        anchor = self.pool.allocate(geometry.blocks_per_frame)
        frames = self.pool.allocate(initial_frames * geometry.blocks_per_frame)
        (history.anchor,) = history.split_frames(anchor)
        history.frames = history.split_frames(frames)
        return ChunkBlocks(tuple(anchor), tuple(frames))

    def begin_chunk(self, session_id: str, *, new_anchor: bool) -> ChunkBlocks:
        """The window that the chunk sees, and new blocks for its own frames.

        With `new_anchor` the first of these frames becomes the anchor.
        """
        history = self._histories[session_id]
        assert not history.pending, f"session {session_id} is in the middle of a chunk"
        blocks = self.pool.allocate(history.chunk_blocks)
        history.pending = history.split_frames(blocks)
        history.next_anchor = history.pending[0] if new_anchor else None
        return ChunkBlocks(history.window, tuple(blocks), new_anchor)

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
        return ChunkBlocks(child.anchor, tuple(block for frame in child.frames for block in frame))

    def close(self, session_id: str) -> None:
        history = self._histories.pop(session_id)
        for frame in (history.anchor, *history.frames, *history.pending):
            self.pool.free(frame)

    def check_integrity(self) -> None:
        self.pool.check_integrity(
            [
                frame
                for history in self._histories.values()
                for frame in (history.anchor, *history.frames, *history.pending)
            ]
        )
