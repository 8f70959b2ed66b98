"""Files that are either written whole and survive a power cut, or are not there."""

import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from helios_serve.errors import StorageError

LOCK = "lock"

T = TypeVar("T")


class DamagedFileError(StorageError):
    """A file that is missing or is not what was written; reading it again does not help."""


@contextmanager
def storage_errors(doing: str, path: Path) -> Iterator[None]:
    """Turn an OSError of the block into a StorageError that tells what failed, and where."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot {doing} {path}: {error.strerror or error}") from error


def write_file(path: Path, data: bytes) -> None:
    """Put `data` into `path`, durably and all at once; its folder is made if need be.

    A file has one writer at a time. A crash may leave a scratch file, whose name starts with a dot.
    """
    scratch = path.with_name(f".{path.name}.part")
    with storage_errors("write", path):
        make_folder(path.parent)
        try:
            with scratch.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)
        sync_folder(path.parent)


def link_files(source: Path, target: Path, names: Iterable[str]) -> None:
    """Give files of one folder a name in another too, durably; nothing is copied."""
    make_folder(target)
    for name in names:
        with storage_errors("link", target / name):
            (target / name).unlink(missing_ok=True)
            (target / name).hardlink_to(source / name)
    sync_folder(target)


def read_file(path: Path) -> bytes:
    """Raises DamagedFileError if there is no such file."""
    try:
        with storage_errors("read", path):
            return path.read_bytes()
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise DamagedFileError(f"{path} is missing") from error
        raise


def write_struct(path: Path, value: msgspec.Struct) -> None:
    """Put `value` into `path` as msgpack, as durably as `write_file`."""
    write_file(path, msgspec.msgpack.encode(value))


def read_struct(path: Path, kind: type[T]) -> T:
    """Raises DamagedFileError if `path` does not hold a `kind`."""
    try:
        return msgspec.msgpack.decode(read_file(path), type=kind)
    except ValueError as error:  # DecodeError, and UnicodeDecodeError for a damaged string
        raise DamagedFileError(f"{path} is damaged: {error}") from error


def make_folder(path: Path) -> None:
    """Make a folder, and what is missing above it, so that it survives a power cut."""
    with storage_errors("make", path):
        if not path.is_dir():
            make_folder(path.parent)
            path.mkdir(exist_ok=True)
            sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Make what was written to a file survive a power cut."""
    with storage_errors("sync", path), path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Make the names in a folder as durable as the files that they stand for."""
    with storage_errors("sync", path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove(path: Path) -> None:
    """Delete a file, or a folder with all that is in it, if it is there."""
    with storage_errors("delete", path):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Have `folder` alone until the block, or this process, ends.

    Raises StorageError at once if somebody else has it.
    """
    with storage_errors("lock", folder):
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        with storage_errors("lock", folder):
            take_lock(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def take_lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise StorageError(
            f"{folder} is in use by another server; each needs a folder of its own"
        ) from error
