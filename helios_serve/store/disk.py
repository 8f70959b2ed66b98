"""Disk usage of the data folder, and its limits."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock

from helios_serve.errors import StorageError
from helios_serve.store.files import storage_errors

RESERVE = 256 << 20
"""Bytes kept free for running videos: with less, new videos are refused."""


BALLAST = "ballast"
BALLAST_BYTES = 4 << 20
"""Size of the ballast file, which is deleted on a full disk so that other files can be deleted."""
MIN_FREE = 1 << 20
"""Free bytes that a server needs to open its databases."""


class Disk:
    """The disk usage of a server's data folder.

    `limit` is the most bytes that the folder may take; None means no limit. `used` is the size, in
    bytes, at the last call of `measure`, and what was written with `reserve` since. Thread-safe.
    """

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        self.folder = folder
        self.limit = limit
        self.used = 0
        self._reserved = 0
        self._lock = Lock()

    def measure(self) -> None:
        """Update `used` to the total size of all files. Hard links to a file count once."""
        sizes: dict[int, int] = {}
        for root, _, names in os.walk(self.folder):
            for name in names:
                try:
                    found = os.lstat(os.path.join(root, name))
                except FileNotFoundError:  # deleted meanwhile
                    continue
                if name != BALLAST:
                    sizes[found.st_ino] = found.st_size
        self.used = sum(sizes.values())

    def check_room(self, size: int = 0) -> None:
        """Check that `size` more bytes may be written, in addition to those that are reserved.

        Raises StorageError if the folder would exceed its limit or the disk be almost full.
        """
        used = self.used + self._reserved
        if self.limit is not None and (used >= self.limit or used + size > self.limit):
            more = f" and {readable(size)} more" if size else ""
            raise no_room(
                f"got {readable(used)} of videos and files{more}, expected less than "
                f"{readable(self.limit)} (--max-disk): delete some"
            )
        with storage_errors("get the free disk space of", self.folder):
            free = shutil.disk_usage(self.folder).free - self._reserved
        if free - size < RESERVE:
            more = f" for {readable(size)} more" if size else ""
            raise no_room(
                f"got {readable(max(0, free))} of free disk space{more}, expected at least "
                f"{readable(RESERVE)} to stay free: delete some videos or files"
            )

    @contextmanager
    def reserve(self, size: int) -> Iterator[None]:
        """Reserve room for `size` bytes, which are written in the block.

        Raises StorageError like `check_room`.
        """
        with self._lock:
            self.check_room(size)
            self._reserved += size
        try:
            yield
        except BaseException:
            with self._lock:
                self._reserved -= size
            raise
        with self._lock:
            self._reserved -= size
            self.used += size


class Ballast:
    """A file in the data folder `folder` that is deleted when the disk is full.

    Deleting a video first writes to a table. On a full disk, deleting the ballast makes room for
    that.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / BALLAST

    def fill(self) -> None:
        """Create the file if it is missing and there is room for it."""
        if self.path.exists():
            return
        with suppress(OSError):
            if shutil.disk_usage(self.path.parent).free < RESERVE:
                return
            try:
                with self.path.open("wb") as file:
                    os.posix_fallocate(file.fileno(), 0, BALLAST_BYTES)
            except OSError:
                self.path.unlink(missing_ok=True)

    def release(self) -> bool:
        """Delete the file. Returns whether there was one."""
        try:
            self.path.unlink()
        except OSError:
            return False
        return True

    def release_if_full(self) -> None:
        """Delete the file if a server could not open its databases otherwise."""
        with suppress(OSError):
            if shutil.disk_usage(self.path.parent).free < MIN_FREE:
                self.release()

    def spend(self, deletion: Callable[[], None]) -> None:
        """Call `deletion`. If the disk fails, delete the file and call `deletion` again.

        Raises StorageError if that fails too.
        """
        try:
            deletion()
        except StorageError:
            if not self.release():
                raise
            deletion()


def no_room(message: str) -> StorageError:
    return StorageError(message, public=message)


def readable(size: float) -> str:
    """Format a number of bytes with a decimal unit, such as `1.5 GB`."""
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
