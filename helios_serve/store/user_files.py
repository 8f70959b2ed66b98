"""Files that users upload, and the output files of their batches."""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from helios_serve.store.database import Database
from helios_serve.store.files import make_folder, remove, sync_file, sync_folder


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

    A file exists once its row is committed. Opening the store deletes contents without a row, which
    a crash left behind. Raises StorageError if the disk fails.
    """

    def __init__(
        self, database: Database, folder: Path, clock: Callable[[], float] = time.time
    ) -> None:
        self.folder = folder
        self._table = database
        self._clock = clock
        make_folder(folder)
        known = {row["id"] for row in database.run("SELECT id FROM files")}
        for path in folder.iterdir():
            if path.name not in known:
                remove(path)

    def scratch(self, file_id: str) -> Path:
        """Return the path to which the caller writes a file's content before it calls `add`."""
        return self.folder / f".{file_id}"

    def add(self, file_id: str, tenant: str, filename: str, purpose: str) -> UserFile:
        """Add the content at `scratch` as a file of the tenant. Durable when it returns.

        A file with the same id is replaced.
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
        self._table.run("DELETE FROM files WHERE id = ?", file_id)
        self._table.insert("files", msgspec.structs.asdict(file))
        return file

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

    def delete(self, file_id: str) -> None:
        self._table.run("DELETE FROM files WHERE id = ?", file_id)
        with suppress(FileNotFoundError):
            self.path(file_id).unlink()


def as_file(row: Any) -> UserFile:
    return UserFile(**dict(row))
