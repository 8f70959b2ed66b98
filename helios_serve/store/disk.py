"""How much room a folder takes, and how much there is."""

import os
import shutil
from pathlib import Path

from helios_serve.errors import StorageError
from helios_serve.store.files import storage_errors

RESERVE = 256 << 20
"""Bytes that stay free for videos in the making, when new ones are refused already."""


class Disk:
    """The folder of a server. `limit` is the most that it may take, in bytes; None is no limit.

    `used` is what it took when `measure` was called last.
    """

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        self.folder = folder
        self.limit = limit
        self.used = 0

    def measure(self) -> None:
        """Add all files up; one with several names counts once."""
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
        """Raise StorageError unless there is room for more videos."""
        if self.limit is not None and self.used >= self.limit:
            raise StorageError(
                f"videos take {readable(self.used)}, expected less than {readable(self.limit)} "
                "(--max-disk): delete some"
            )
        with storage_errors("look at the disk of", self.folder):
            free = shutil.disk_usage(self.folder).free
        if free < RESERVE:
            raise StorageError(
                f"the disk has {readable(free)} free, expected at least {readable(RESERVE)}"
            )


def readable(size: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
