"""Files that users upload, and the output files of their batches."""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from helios_serve.errors import CapacityError, HeliosError, StorageError
from helios_serve.logger import logger
from helios_serve.store.database import Database, Run
from helios_serve.store.disk import Ballast
from helios_serve.store.files import (
    DamagedFileError,
    make_folder,
    remove,
    storage_errors,
    sync_file,
    sync_folder,
)
from helios_serve.store.lost_and_found import LostAndFound


class UserFile(msgspec.Struct, frozen=True, kw_only=True):
    """The record of a file. `size` is in bytes, `created_at` in Unix seconds."""

    id: str
    tenant: str
    filename: str
    purpose: str
    size: int
    created_at: float


class UserFileStore:
    """Stores the contents of files in `folder`, named by file id, and a row for each in `database`.

    A file exists once its row is committed. Names that start with a dot are of files that are being
    written or deleted. Opening the store deletes those, and moves other contents without a row to
    `lost`. Raises StorageError if the disk fails.
    """

    def __init__(
        self,
        database: Database,
        folder: Path,
        lost: LostAndFound,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.folder = folder
        self._table = database
        self._clock = clock
        self._ballast = Ballast(folder.parent)
        make_folder(folder)
        self._reconcile(lost)

    def scratch(self, file_id: str) -> Path:
        """Return the path to which the caller writes a file's content before it calls `add`."""
        return self.folder / f".{file_id}"

    def add(
        self,
        file_id: str,
        tenant: str,
        filename: str,
        purpose: str,
        *,
        max_bytes: int | None = None,
    ) -> UserFile:
        """Add the content at `scratch` as a file of the tenant. Durable when it returns.

        A file with the same id is replaced. Raises CapacityError if the tenant's files would exceed
        `max_bytes`; None means no limit.
        """
        scratch, path = self.scratch(file_id), self.path(file_id)
        sync_file(scratch)
        scratch.replace(path)
        sync_folder(self.folder)
        file = UserFile(
            id=file_id,
            tenant=tenant,
            filename=filename,
            purpose=purpose,
            size=path.stat().st_size,
            created_at=self._clock(),
        )
        columns = msgspec.structs.asdict(file)
        marks = ", ".join("?" * len(columns))
        try:
            with self._table.transaction() as run:
                run("DELETE FROM files WHERE id = ?", file_id)
                if max_bytes is not None:
                    check_quota(tenant, bytes_of(run, tenant), file.size, max_bytes)
                run(f"INSERT INTO files ({', '.join(columns)}) VALUES ({marks})", *columns.values())
        except HeliosError:
            remove(path)
            raise
        return file

    def bytes_of(self, tenant: str) -> int:
        """Return the bytes of a tenant's files."""
        return bytes_of(self._table.run, tenant)

    def get(self, file_id: str) -> UserFile | None:
        rows = self._table.run("SELECT * FROM files WHERE id = ?", file_id)
        return as_file(rows[0]) if rows else None

    def path(self, file_id: str) -> Path:
        """Return the path of a file's content."""
        return self.folder / file_id

    def page(
        self, tenant: str, after: str | None, limit: int, *, newest_first: bool, purpose: str | None
    ) -> list[UserFile]:
        """Return up to `limit` files of a tenant ordered by age, starting after the file `after`.

        `purpose` filters by purpose; None matches any.
        """
        rows = self._table.page(
            "files", after, limit, newest_first=newest_first, tenant=tenant, purpose=purpose
        )
        return [as_file(row) for row in rows]

    def older_than(self, limit: float) -> list[UserFile]:
        """Return the files created before `limit`, in Unix seconds."""
        return [
            as_file(row)
            for row in self._table.run("SELECT * FROM files WHERE created_at < ?", limit)
        ]

    def check(self, file: UserFile) -> Path:
        """Return the path of a file's content.

        Raises DamagedFileError unless the content is there and has its size.
        """
        path = self.path(file.id)
        with storage_errors("read", path):
            size = path.stat().st_size if path.exists() else None
        if size != file.size:
            raise DamagedFileError(f"{path} is damaged: got {size} of {file.size} bytes")
        return path

    def delete(self, file_id: str) -> None:
        """Delete a file. It works on a full disk, too."""
        hidden = self.scratch(file_id)
        with suppress(FileNotFoundError):
            self.path(file_id).replace(hidden)
        try:
            self._ballast.spend(
                lambda: self._table.run_all(("DELETE FROM files WHERE id = ?", (file_id,)))
            )
        except StorageError:
            with suppress(FileNotFoundError):
                hidden.replace(self.path(file_id))
            raise
        remove(hidden)

    def _reconcile(self, lost: LostAndFound) -> None:
        """Make the table and the folder agree."""
        known = {row["id"]: row["size"] for row in self._table.run("SELECT id, size FROM files")}
        found = {path.name: path for path in self.folder.iterdir()}
        for name, path in found.items():
            if name.startswith("."):
                if name[1:] in known and name[1:] not in found:  # a crash interrupted its deletion
                    self._table.run("DELETE FROM files WHERE id = ?", name[1:])
                    del known[name[1:]]
                remove(path)
            elif name not in known:
                lost.take(path)
        lost.report("the table of files")
        for missing in known.keys() - found.keys():
            logger.error("the content of file %s is missing", missing)


def bytes_of(run: Run, tenant: str) -> int:
    rows = run("SELECT COALESCE(SUM(size), 0) AS size FROM files WHERE tenant = ?", tenant)
    return int(rows[0]["size"])


def check_quota(tenant: str, stored: int, size: int, max_bytes: int) -> None:
    """Raise CapacityError if `size` more bytes exceed a tenant's `max_bytes`."""
    if stored + size > max_bytes:
        raise CapacityError(
            f"got a file of {size} bytes, expected at most {max(0, max_bytes - stored)}: tenant "
            f"{tenant} has {stored} of its {max_bytes} bytes of files (max_file_bytes); delete "
            "some",
            code="tenant_quota",
        )


def as_file(row: Any) -> UserFile:
    return UserFile(**dict(row))
