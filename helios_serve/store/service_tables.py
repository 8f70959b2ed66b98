"""The database of uploaded files and batches."""

import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

from helios_serve.store.batches import BatchStore
from helios_serve.store.database import Database, Guard, allow
from helios_serve.store.lost_and_found import LostAndFound
from helios_serve.store.user_files import UserFileStore

DATABASE = "service.sqlite3"
SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE files (
    id TEXT PRIMARY KEY NOT NULL,
    tenant TEXT NOT NULL,
    filename TEXT NOT NULL,
    purpose TEXT NOT NULL,
    size INTEGER NOT NULL,
    created_at REAL NOT NULL
);
CREATE INDEX files_by_age ON files (tenant, created_at, id);
CREATE TABLE batches (
    id TEXT PRIMARY KEY NOT NULL,
    tenant TEXT NOT NULL,
    created_at REAL NOT NULL,
    status TEXT NOT NULL,
    record BLOB NOT NULL
);
CREATE INDEX batches_by_age ON batches (tenant, created_at, id);
CREATE TABLE batch_lines (
    batch_id TEXT NOT NULL,
    line INTEGER NOT NULL,
    is_good INTEGER NOT NULL,
    data BLOB NOT NULL,
    PRIMARY KEY (batch_id, line)
);
"""


class ServiceTables:
    """The stores of files and batches in `folder`.

    The caller must hold the lock of `folder`: the files are not safe for use by two processes.
    """

    def __init__(
        self, folder: Path, clock: Callable[[], float] = time.time, *, guard: Guard = allow
    ) -> None:
        with ExitStack() as opened:
            database = Database(folder / DATABASE, SCHEMA, SCHEMA_VERSION, guard=guard)
            opened.enter_context(closing(database))
            self.files = UserFileStore(database, folder / "files", LostAndFound(folder), clock)
            self.batches = BatchStore(database)
            self._database = database
            self._opened = opened.pop_all()

    def checkpoint(self) -> None:
        """Copy the write-ahead log to the database, so that little is lost if the log is lost."""
        self._database.checkpoint()

    def close(self) -> None:
        self._opened.close()
