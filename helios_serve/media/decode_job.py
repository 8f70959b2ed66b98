"""What is said between the server and a process that decodes references."""

import struct
from typing import Literal

import msgspec

MediaKind = Literal["image", "video"]

HEAD = struct.Struct(">I")
"""In front of each message: its length in bytes."""


class DecodeLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What decoding one reference may take; a process that wants more is ended or refused.

    `cpu_seconds` counts all threads, `seconds` goes by the clock; `memory` is address space in
    bytes, most of which is never touched; `result_bytes` is the largest file it may write.
    """

    cpu_seconds: int = 60
    seconds: float = 90.0
    memory: int = 4 << 30
    open_files: int = 64
    result_bytes: int = 2 << 30


class DecodeJob(msgspec.Struct, frozen=True):
    """Decode the file `path` to `width` x `height` and write its frames to the file `result`.

    None for `kind` takes an image or a video, as the content says.
    """

    path: str
    result: str
    width: int
    height: int
    kind: MediaKind | None


class Decoded(msgspec.Struct, frozen=True, tag=True):
    """RGB frames in the result's file, as `Frames` has them."""

    kind: MediaKind
    count: int
    skipped: int


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The file is not what it should be; `message` says what was got, and what is expected."""

    message: str


DecodeAnswer = Decoded | Refused


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The process has started and takes jobs."""


def packed(message: msgspec.Struct) -> bytes:
    """A message with its head."""
    data = msgspec.msgpack.encode(message)
    return HEAD.pack(len(data)) + data
