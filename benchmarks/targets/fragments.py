"""Splits a growing fragmented MP4 into its chunks while it arrives."""

import struct
from collections.abc import Iterator
from typing import NamedTuple

from helios_serve.media.mp4 import child_boxes

HEADER = struct.Struct(">I4s")


class Fragment(NamedTuple):
    """A chunk of a video: a moof and its mdat. `size` is in bytes."""

    frames: int
    size: int


class FragmentReader:
    """Takes pieces of a fragmented MP4, and returns the fragments that they complete.

    Raises ValueError for data that is not MP4.
    """

    def __init__(self) -> None:
        self._data = bytearray()
        self._moof: Fragment | None = None

    def feed(self, data: bytes) -> list[Fragment]:
        """Take the next bytes."""
        self._data += data
        return list(self._complete())

    def _complete(self) -> Iterator[Fragment]:
        while len(self._data) >= HEADER.size:
            size, kind = HEADER.unpack_from(self._data)
            if size < HEADER.size:
                raise ValueError(f"got an MP4 box {kind!r} of {size} bytes, expected at least 8")
            if len(self._data) < size:
                return
            if kind == b"moof":
                self._moof = Fragment(count_frames(bytes(self._data[:size])), size)
            elif kind == b"mdat" and self._moof is not None:
                yield self._moof._replace(size=self._moof.size + size)
                self._moof = None
            del self._data[:size]


def count_frames(moof: bytes) -> int:
    """Return the number of samples of a fragment, from its trun boxes."""
    return sum(
        int.from_bytes(moof[trun.start + 4 : trun.start + 8])
        for traf in child_boxes(moof, HEADER.size, len(moof))
        if traf.kind == b"traf"
        for trun in child_boxes(moof, traf.start, traf.stop)
        if trun.kind == b"trun"
    )


def box(kind: bytes, content: bytes) -> bytes:
    return HEADER.pack(HEADER.size + len(content), kind) + content


def empty_header() -> bytes:
    """Return the start of a fragmented MP4 without a track, for servers that only look like one."""
    return box(b"ftyp", b"iso5\0\0\0\0iso5") + box(b"moov", b"")


def empty_fragment(frames: int, payload: bytes = b"") -> bytes:
    """Return a fragment that announces `frames` frames, with any payload."""
    trun = box(b"trun", struct.pack(">II", 0, frames))
    return box(b"moof", box(b"traf", trun)) + box(b"mdat", payload)
