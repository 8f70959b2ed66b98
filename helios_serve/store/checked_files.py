"""Files with a checksum, so that damage is found when they are read.

The content follows a head of 24 bytes: a `free` box of an MP4 file, which players skip, with a
magic number, the length of the content and its CRC-32. Files of versions before 0.2 have no head.
"""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from helios_serve.store.files import DamagedFileError, read_file, write_file

T = TypeVar("T")

HEAD = struct.Struct(">I4s4sQI")
"""Size of the head, box type, magic number, bytes of content, CRC-32 of the content."""
BOX, MAGIC = b"free", b"hlsv"
OLD_BOXES = (b"ftyp", b"styp", b"sidx", b"moof")
"""Types of the first box of an MP4 segment that was written without a head."""


def write_checked(path: Path, data: bytes) -> None:
    """Write `data` and its checksum to `path` with `write_file`."""
    head = HEAD.pack(HEAD.size, BOX, MAGIC, len(data), zlib.crc32(data))
    write_file(path, head + data)


def read_checked(path: Path, is_old: Callable[[bytes], bool]) -> bytes:
    """Return the content of a file.

    `is_old` returns whether a file without a head looks like one of an earlier version, which is
    returned unchecked. Raises DamagedFileError if the file is missing or has other content.
    """
    data = read_file(path)
    if len(data) >= HEAD.size:
        size, box, magic, length, checksum = HEAD.unpack_from(data)
        if (size, box, magic) == (HEAD.size, BOX, MAGIC):
            content = data[HEAD.size :]
            if len(content) != length:
                raise DamagedFileError(f"{path} is damaged: got {len(content)} of {length} bytes")
            if zlib.crc32(content) != checksum:
                raise DamagedFileError(f"{path} is damaged: its checksum does not match")
            return content
    if is_old(data):
        return data
    raise DamagedFileError(f"{path} is damaged: its first bytes are invalid")


def is_old_segment(data: bytes) -> bool:
    return data[4:8] in OLD_BOXES


def is_old_struct(data: bytes) -> bool:
    """Return whether `data` starts like a msgpack map. Decoding checks the rest."""
    return bool(data) and (data[0] & 0xF0 == 0x80 or data[0] in (0xDE, 0xDF))


def write_struct(path: Path, value: msgspec.Struct) -> None:
    """Write `value` as msgpack with `write_checked`."""
    write_checked(path, msgspec.msgpack.encode(value))


def read_struct(path: Path, kind: type[T]) -> T:
    """Read a msgpack file. Raises DamagedFileError if it is damaged or does not hold a `kind`."""
    data = read_checked(path, is_old_struct)
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except ValueError as error:  # DecodeError, and UnicodeDecodeError for a damaged string
        raise DamagedFileError(f"{path} is damaged: {error}") from error
