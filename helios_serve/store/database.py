"""A SQLite database in which every change is durable when the call returns."""

import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

from helios_serve.errors import StorageError
from helios_serve.logger import logger
from helios_serve.store.files import open_private, storage_errors

Value = str | bytes | float | None
Run = Callable[..., list[sqlite3.Row]]
"""Executes a statement with the values of its placeholders and returns the rows."""
Guard = Callable[[], None]
"""Raises StorageError if this process may not write."""


def allow() -> None:
    """The guard of a database that no other process can take."""


class Database:
    """A SQLite file with the tables of `schema`, a script that is run when the file is created.

    `version` is stored in the file and must be changed with the schema. `migrations` maps a version
    to the script that converts its tables to the next version. They are run in order, each in its
    own transaction. The tables are always in the file itself, not only in its write-ahead log.
    `guard` is called before each statement and each commit, and raises StorageError if nothing may
    be written any more. Thread-safe. Raises StorageError if the file is damaged, has a version
    without a migration, or cannot be written.
    """

    def __init__(
        self,
        path: Path,
        schema: str,
        version: int,
        migrations: Mapping[int, str] | None = None,
        *,
        guard: Guard = allow,
    ) -> None:
        self.path = path
        self._guard = guard
        self._lock = Lock()
        with storage_errors("open", path):
            # SQLite gives the permissions of the database to its journal files, too.
            os.close(open_private(path, os.O_RDWR | os.O_CREAT))
        with self._errors():
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.row_factory = sqlite3.Row
        try:
            self._prepare(schema, version, migrations or {})
        except BaseException:
            self.close()
            raise

    def run(self, statement: str, *values: Value) -> list[sqlite3.Row]:
        """Execute a statement as a transaction of its own and return its rows."""
        with self._lock, self._errors():
            self._guard()
            return self._connection.execute(statement, values).fetchall()

    def insert(self, table: str, columns: dict[str, Value]) -> None:
        """Insert a row."""
        marks = ", ".join("?" * len(columns))
        self.run(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})", *columns.values())

    def page(
        self, table: str, after: str | None, limit: int, *, newest_first: bool, **equal: Value
    ) -> list[sqlite3.Row]:
        """Return up to `limit` rows ordered by creation time, starting after the row `after`.

        `equal` filters by the values of columns; None matches any value.
        """
        order, beyond = ("DESC", "<") if newest_first else ("ASC", ">")
        wanted = {name: value for name, value in equal.items() if value is not None}
        terms = [f"{name} = ?" for name in wanted]
        values = [*wanted.values()]
        if after is not None:
            terms.append(
                f"(created_at, id) {beyond} (SELECT created_at, id FROM {table} WHERE id = ?)"
            )
            values.append(after)
        where = f"WHERE {' AND '.join(terms)}" if terms else ""
        return self.run(
            f"SELECT * FROM {table} {where} ORDER BY created_at {order}, id {order} LIMIT ?",
            *values,
            limit,
        )

    def run_all(self, *statements: tuple[str, tuple[Value, ...]]) -> None:
        """Execute statements in one transaction."""
        with self.transaction() as run:
            for statement, values in statements:
                run(statement, *values)

    @contextmanager
    def transaction(self) -> Iterator[Run]:
        """Execute the block's statements in one transaction, rolled back if the block raises."""
        with self._lock, self._errors(), self._connection:
            self._guard()
            self._connection.execute("BEGIN IMMEDIATE")
            yield lambda statement, *values: self._connection.execute(statement, values).fetchall()
            self._guard()

    def checkpoint(self) -> None:
        """Copy the write-ahead log to the file, so that little is lost if the log is lost."""
        self.run("PRAGMA wal_checkpoint(PASSIVE)")

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def _prepare(self, schema: str, version: int, migrations: Mapping[int, str]) -> None:
        found = self.run("PRAGMA user_version")[0][0]
        known = found in (0, version) or all(step in migrations for step in range(found, version))
        if found > version or not known:
            age = "a newer" if found > version else "an older"
            raise StorageError(
                f"{self.path} was written by {age} version of helios-serve: got schema "
                f"{found}, expected {version}"
            )
        self.run("PRAGMA journal_mode = WAL")
        self.run("PRAGMA synchronous = FULL")
        problem = self.run("PRAGMA quick_check(1)")[0][0]
        if problem != "ok":
            raise StorageError(f"{self.path} is damaged: {problem}")
        if found == version:
            return
        if found == 0:
            self._run_script(schema, version)
        else:
            for step in range(found, version):
                logger.info("%s: schema %d becomes %d", self.path, step, step + 1)
                self._run_script(migrations[step], step + 1)
        self.checkpoint()

    def _run_script(self, script: str, version: int) -> None:
        with self._lock, self._errors():
            try:
                self._connection.executescript(
                    f"BEGIN IMMEDIATE;\n{script}\nPRAGMA user_version = {version};\nCOMMIT;"
                )
            except sqlite3.Error:
                if self._connection.in_transaction:
                    self._connection.rollback()
                raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StorageError(f"cannot access the database {self.path}: {error}") from error
