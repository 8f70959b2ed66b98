"""A player that shows chunks as they arrive: when it stalls, and which buffer prevents that."""

from collections.abc import Sequence
from typing import NamedTuple

from helios_serve.benchmarks.measure.record import ChunkRecord


class Playback(NamedTuple):
    """What a viewer saw. Seconds; the wait for the start is not a stall (CTA-2066)."""

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


def stalls(chunks: Sequence[ChunkRecord], fps: int, buffer: float) -> list[tuple[float, float]]:
    """Return when a player is out of frames, as (start, end).

    It starts `buffer` seconds after the first chunk. It plays on from where it stalled, so that a
    late chunk counts once.
    """
    found = []
    shown = chunks[0].at + buffer
    for before, chunk in zip(chunks, chunks[1:], strict=False):
        due = shown + before.frames / fps
        shown = max(chunk.at, due)
        if shown > due:
            found.append((due, shown))
    return found


def play(chunks: Sequence[ChunkRecord], fps: int, buffer: float) -> Playback:
    """Play a session's chunks, at least one. Stalls shorter than a frame are not counted."""
    gaps = [end - start for start, end in stalls(chunks, fps, buffer)]
    frames = sum(chunk.frames for chunk in chunks)
    return Playback(sum(gap > 1 / fps for gap in gaps), sum(gaps), frames / fps)
