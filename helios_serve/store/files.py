"""Durable, atomic file operations.

A write either completes and survives a power failure, or leaves the previous state. All functions
raise StorageError if the disk fails.
"""

import fcntl
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from helios_serve.errors import StorageError
from helios_serve.logger import logger

LOCK = "lock"
FILE_MODE, FOLDER_MODE = 0o600, 0o700
"""Permissions of what is stored, whatever the umask: only the owner may see prompts and videos."""


class DamagedFileError(StorageError):
    """The file is missing or its content is invalid, so that reading it again would fail too."""

    def __init__(self, message: str) -> None:
        super().__init__(message, public="stored data is missing or damaged")


@contextmanager
def storage_errors(doing: str, path: Path) -> Iterator[None]:
    """Convert an OSError of the block to a StorageError: "cannot DOING PATH: REASON".

    `doing` is a verb, such as "read".
    """
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot {doing} {path}: {error.strerror or error}") from error


def open_private(path: str | Path, flags: int) -> int:
    """Open or create a file, as the `opener` of `open`, and restrict it to its owner."""
    descriptor = os.open(path, flags, FILE_MODE)
    if stat.S_ISREG(
        os.fstat(descriptor).st_mode
    ):  # a device such as /dev/stdout keeps its permissions
        os.fchmod(descriptor, FILE_MODE)
    return descriptor


def create_file(path: Path) -> BinaryIO:
    """Open a file for writing. Only its owner may access it."""
    return open(path, "wb", opener=open_private)


def make_private(folder: Path) -> None:
    """Restrict an existing folder of data to its owner.

    A folder of another user, such as a mounted volume, stays as it is.
    """
    with storage_errors("get the permissions of", folder):
        mode = folder.stat().st_mode
    if mode & 0o077:
        try:
            folder.chmod(FOLDER_MODE)
        except PermissionError:
            logger.warning("%s belongs to another user: others may read it", folder)


def write_file(path: Path, data: bytes) -> None:
    """Write `data` to `path`, durably and atomically; missing folders are created.

    A file must have one writer at a time. A crash may leave a temporary file, whose name starts
    with a dot.
    """
    scratch = path.with_name(f".{path.name}.part")
    with storage_errors("write", path):
        make_folder(path.parent)
        try:
            with create_file(scratch) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)
        sync_folder(path.parent)


def link_files(source: Path, target: Path, names: Iterable[str]) -> None:
    """Hard-link the files called `names` from `source` to `target`, durably."""
    make_folder(target)
    for name in names:
        with storage_errors("link", target / name):
            (target / name).unlink(missing_ok=True)
            (target / name).hardlink_to(source / name)
    sync_folder(target)


def read_file(path: Path) -> bytes:
    """Return the content of a file. Raises DamagedFileError if it does not exist."""
    try:
        with storage_errors("read", path):
            return path.read_bytes()
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise DamagedFileError(f"{path} is missing") from error
        raise


def make_folder(path: Path) -> None:
    """Create a folder and its missing parents, durably."""
    with storage_errors("make", path):
        if not path.is_dir():
            make_folder(path.parent)
            path.mkdir(FOLDER_MODE, exist_ok=True)
            path.chmod(FOLDER_MODE)  # mkdir removes the bits of the umask, but adds none
            sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Flush the content of a file to the disk."""
    with storage_errors("sync", path), path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Flush the entries of a folder (names that were added or removed) to the disk."""
    with storage_errors("sync", path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove(path: Path) -> None:
    """Delete a file or a folder tree, if it exists."""
    with storage_errors("delete", path):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path, *, is_needed: bool = True) -> Iterator[None]:
    """Hold an exclusive lock on `folder` until the block or this process ends.

    Raises StorageError at once if another process holds it, unless it is not needed.
    """
    with storage_errors("lock", folder):
        descriptor = open_private(folder / LOCK, os.O_RDWR | os.O_CREAT)
    try:
        with storage_errors("lock", folder):
            try:
                take_lock(descriptor, folder)
            except StorageError:
                if is_needed:
                    raise
                logger.warning("%s is still locked by the process that lost its lease", folder)
        yield
    finally:
        os.close(descriptor)


def take_lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise StorageError(
            f"{folder} is in use by another server: stop that server, or use another folder"
        ) from error
