"""Uploaded files, independent of the HTTP framework that receives them."""

import asyncio
from typing import BinaryIO, NamedTuple


class Upload(NamedTuple):
    """An uploaded file: its content, and the name and media type that the client declared."""

    file: BinaryIO
    filename: str | None = None
    content_type: str | None = None

    async def read(self, size: int) -> bytes:
        """Return the next bytes, at most `size`; empty at the end."""
        return await asyncio.to_thread(self.file.read, size)
