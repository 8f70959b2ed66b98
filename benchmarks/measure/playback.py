"""A player that shows chunks as they arrive: when it stalls, and which buffer prevents that."""

from collections.abc import Sequence
from typing import NamedTuple

from helios_serve.benchmarks.measure.record import ChunkRecord


class Playback(NamedTuple):
    """What a viewer experienced, in seconds. The wait for the start is not a stall (CTA-2066)."""

    stalls: int
    stall_seconds: float
    play_seconds: float

    @property
    def rebuffer_ratio(self) -> float:
        return self.stall_seconds / (self.stall_seconds + self.play_seconds)


def needed_buffer(chunks: Sequence[ChunkRecord], fps: int) -> float:
    """Return the smallest delay after the first chunk, in seconds, with which nothing stalls."""
    late, played = 0.0, 0
    for chunk in chunks:
        late = max(late, chunk.at - chunks[0].at - played / fps)
        played += chunk.frames
    return late


def shown_at(chunks: Sequence[ChunkRecord], fps: int, buffer: float) -> list[float]:
    """Return when a player shows the first frame of each chunk.

    It starts `buffer` seconds after the first chunk. After a stall it continues where it was, so
    that a late chunk delays all later ones.
    """
    shown = [chunks[0].at + buffer]
    for before, chunk in zip(chunks, chunks[1:], strict=False):
        shown.append(max(chunk.at, shown[-1] + before.frames / fps))
    return shown


def stalls(chunks: Sequence[ChunkRecord], fps: int, buffer: float) -> list[tuple[float, float]]:
    """Return when a player is out of frames, as (start, end)."""
    shown = shown_at(chunks, fps, buffer)
    dues = [start + chunk.frames / fps for start, chunk in zip(shown, chunks, strict=True)]
    return [(due, start) for due, start in zip(dues, shown[1:], strict=False) if start > due]


def play(chunks: Sequence[ChunkRecord], fps: int, buffer: float) -> Playback:
    """Play a session's chunks, at least one. Stalls shorter than a frame are not counted."""
    gaps = [end - start for start, end in stalls(chunks, fps, buffer)]
    frames = sum(chunk.frames for chunk in chunks)
    return Playback(sum(gap > 1 / fps for gap in gaps), sum(gaps), frames / fps)
