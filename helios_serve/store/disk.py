"""Disk usage of the data folder, and its limits."""

import os
import shutil
from pathlib import Path

from helios_serve.errors import StorageError
from helios_serve.store.files import storage_errors

RESERVE = 256 << 20
"""Bytes kept free for running videos: with less, new videos are refused."""


class Disk:
    """The disk usage of a server's data folder.

    `limit` is the most bytes that the folder may take; None means no limit. `used` is the size, in
    bytes, at the last call of `measure`.
    """

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        self.folder = folder
        self.limit = limit
        self.used = 0

    def measure(self) -> None:
        """Update `used` to the total size of all files. Hard links to a file count once."""
        sizes: dict[int, int] = {}
        for root, _, names in os.walk(self.folder):
            for name in names:
                try:
                    found = os.lstat(os.path.join(root, name))
                except FileNotFoundError:  # deleted meanwhile
                    continue
                sizes[found.st_ino] = found.st_size
        self.used = sum(sizes.values())

    def check_room(self) -> None:
        """Raise StorageError if the folder exceeds its limit or the disk is almost full."""
        if self.limit is not None and self.used >= self.limit:
            raise StorageError(
                f"got {readable(self.used)} of videos and files, expected less than "
                f"{readable(self.limit)} (--max-disk): delete some"
            )
        with storage_errors("get the free disk space of", self.folder):
            free = shutil.disk_usage(self.folder).free
        if free < RESERVE:
            raise StorageError(
                f"got {readable(free)} of free disk space, expected at least {readable(RESERVE)}"
            )


def readable(size: float) -> str:
    """Format a number of bytes with a decimal unit, such as `1.5 GB`."""
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
