"""Detects video files that were cut off, which FFmpeg reads as if they were complete.

A container that states its own length is checked against the length of the file. Streams without
one (MPEG-TS, live WebM, fragmented MP4 between two fragments) can end anywhere.
"""

import math
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from helios_serve.media.refusals import invalid

MAX_INDEX = 64 << 20
"""Largest index (`moov`) that is searched, in bytes."""
EBML, SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
CONTAINERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl")
"""Boxes that lead to a track's table of chunk offsets."""
KINDS = (b"ftyp", b"moov", b"mdat", b"moof", b"free", b"skip", b"wide", b"styp", b"sidx", b"uuid")
"""Boxes with which an MP4 or QuickTime file starts."""
FLV_METADATA, FLV_SIZE = 4096, b"filesize\0"
"""Bytes of an FLV file that are searched for its size, and the name and type that precede it."""
UNKNOWN_RIFF = (0, 0xFFFFFFFF)


class FileBox(NamedTuple):
    """A box of an MP4 file: its type, the offset of its content and that of its end."""

    kind: bytes
    start: int
    stop: int


def check_complete(path: Path) -> None:
    """Raise InvalidRequestError for a file that is shorter than it states."""
    length = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        if head[4:8] in KINDS:
            stated = mp4_length(file, length)
        elif head[:4] == b"RIFF" and head[8:] == b"AVI ":
            stated = avi_length(file, length)
        elif head[:4] == EBML:
            stated = matroska_length(file)
        elif head[:3] == b"FLV":
            stated = flv_length(file)
        else:
            return
    if stated > length:
        got = f"{length} bytes of a video of {stated} or more bytes"
        raise invalid(path, got, "a complete file: this one was cut off", "video")


def mp4_length(file: BinaryIO, length: int) -> int:
    """Return the offset up to which boxes with frames, or chunks of the index, reach."""
    reach = 0
    for box in boxes(file, 0, length):
        if box.kind in (b"mdat", b"moof", b"moov"):
            reach = max(reach, box.stop)
        if box.kind == b"moov" and box.stop - box.start <= MAX_INDEX and box.stop <= length:
            reach = max(reach, last_chunk(file, box))
    return reach


def boxes(file: BinaryIO, start: int, stop: int) -> Iterator[FileBox]:
    """Iterate over the boxes between two offsets. The last one may reach beyond `stop`."""
    while start + 8 <= stop:
        file.seek(start)
        head = file.read(16)
        size, kind, header = int.from_bytes(head[:4], "big"), head[4:8], 8
        if size == 1 and len(head) == 16:
            size, header = int.from_bytes(head[8:], "big"), 16
        if size == 0:  # up to the end of the file
            size = stop - start
        if size < header:
            return
        yield FileBox(kind, start + header, start + size)
        start += size


def last_chunk(file: BinaryIO, parent: FileBox) -> int:
    """Return the offset after the first byte of the last chunk of frames or sound."""
    reach = 0
    for box in boxes(file, parent.start, parent.stop):
        if box.kind in CONTAINERS:
            reach = max(reach, last_chunk(file, box))
        elif box.kind in (b"stco", b"co64") and box.stop <= parent.stop:
            width = 4 if box.kind == b"stco" else 8
            file.seek(box.start + 4)
            table = file.read(box.stop - box.start - 4)
            count = min(int.from_bytes(table[:4], "big"), (len(table) - 4) // width)
            offsets = (table[4 + at * width : 4 + at * width + width] for at in range(count))
            reach = max([reach, *(int.from_bytes(item, "big") + 1 for item in offsets)])
    return reach


def avi_length(file: BinaryIO, length: int) -> int:
    """Return the end of the last RIFF chunk; large files have several."""
    start = 0
    while start + 12 <= length:
        file.seek(start)
        head = file.read(12)
        size = int.from_bytes(head[4:8], "little")
        if head[:4] != b"RIFF" or size in UNKNOWN_RIFF:
            break
        start += 8 + size + size % 2
    return start - 1 if start == length + 1 else start  # the last byte may lack its padding


def matroska_length(file: BinaryIO) -> int:
    """Return the end of the segment; 0 if its size is unknown, as in live streams."""
    file.seek(4)
    header = read_size(file)
    if header is None:
        return 0
    file.seek(header, os.SEEK_CUR)
    if file.read(4) != SEGMENT:
        return 0
    size = read_size(file)
    return 0 if size is None else file.tell() + size


def flv_length(file: BinaryIO) -> int:
    """Return the file size in the metadata at the start; 0 if there is none, as in live streams."""
    file.seek(0)
    _, _, rest = file.read(FLV_METADATA).partition(FLV_SIZE)
    if len(rest) < 8:
        return 0
    (size,) = struct.unpack(">d", rest[:8])
    return int(size) if math.isfinite(size) else 0


def read_size(file: BinaryIO) -> int | None:
    """Read an EBML size of 1 to 8 bytes; None if it is unknown or damaged."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    width = 9 - first[0].bit_length()
    value = int.from_bytes(bytes([first[0] & (0xFF >> width)]) + file.read(width - 1), "big")
    return None if value == (1 << 7 * width) - 1 else value
