"""Messages between the server and a decoder process: msgpack with a length prefix."""

import struct
from typing import Literal

import msgspec

MediaKind = Literal["image", "video"]

LENGTH_PREFIX = struct.Struct(">I")
"""The length prefix of a message, in bytes."""


class DecodeLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Resource limits for decoding one reference.

    - `cpu_seconds`: CPU time of all threads; the process is killed beyond it.
    - `seconds`: wall-clock time; the process is killed beyond it.
    - `memory`: bytes of address space, most of which is never touched; allocations beyond it fail.
    - `open_files`: open file descriptors.
    - `result_bytes`: the largest file that may be written.
    """

    cpu_seconds: int = 60
    seconds: float = 90.0
    memory: int = 4 << 30
    open_files: int = 64
    result_bytes: int = 2 << 30


class DecodeJob(msgspec.Struct, frozen=True):
    """A job to decode the file `path` at `width` x `height` pixels and write it to `result`.

    With None for `kind` the content determines whether it is an image or a video.
    """

    path: str
    result: str
    width: int
    height: int
    kind: MediaKind | None


class Decoded(msgspec.Struct, frozen=True, tag=True):
    """The reference was decoded. The result file holds RGB frames in the layout of `Frames.data`.

    `count` and `skipped` are those of `Frames`.
    """

    kind: MediaKind
    count: int
    skipped: int


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The file was rejected. `message` states what it is and what is expected."""

    message: str


DecodeAnswer = Decoded | Refused


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The process has started and accepts jobs."""


def encode_message(message: msgspec.Struct) -> bytes:
    """Encode a message with its length prefix."""
    data = msgspec.msgpack.encode(message)
    return LENGTH_PREFIX.pack(len(data)) + data
