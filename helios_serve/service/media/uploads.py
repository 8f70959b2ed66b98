"""Uploaded files, independent of the HTTP framework that receives them."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple


class Spool(NamedTuple):
    """Where uploads are written while their request is read: files without a name in `folder`.

    The system deletes them after a crash. `check_room` is called with the bytes that a request has
    written, and raises StorageError if there is no room for them. By default, it is the system's
    folder for temporary files.
    """

    folder: Path | None = None
    check_room: Callable[[int], None] = lambda _: None


class Upload(NamedTuple):
    """An uploaded file: its content, and the name and media type that the client declared."""

    file: BinaryIO
    filename: str | None = None
    content_type: str | None = None

    async def size(self) -> int:
        """Return the size of the content in bytes. The position stays as it is."""
        return await asyncio.to_thread(size_of, self.file)

    async def read(self, size: int) -> bytes:
        """Return the next bytes, at most `size`; empty at the end."""
        return await asyncio.to_thread(self.file.read, size)


def size_of(file: BinaryIO) -> int:
    position = file.tell()
    size = file.seek(0, os.SEEK_END)
    file.seek(position)
    return size
