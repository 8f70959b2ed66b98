"""The table of jobs: what was asked for, and how far each has come."""

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

from helios_serve.errors import StorageError
from helios_serve.sampling_params import VideoRequest
from helios_serve.store.database import Database, Value

EndStatus = Literal["completed", "failed", "cancelled"]
JobStatus = Literal["queued", "in_progress"] | EndStatus

SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE jobs (
    id TEXT PRIMARY KEY NOT NULL,
    tenant TEXT NOT NULL,
    request BLOB NOT NULL,
    status TEXT NOT NULL,
    error TEXT,
    created_at REAL NOT NULL,
    updated_at REAL NOT NULL,
    completed_at REAL,
    first_chunk INTEGER NOT NULL,
    next_chunk INTEGER NOT NULL,
    num_chunks INTEGER NOT NULL,
    has_media INTEGER NOT NULL,
    kept_chunk INTEGER
);
CREATE INDEX jobs_by_age ON jobs (tenant, created_at, id);
"""


class StoredJob(msgspec.Struct, frozen=True, kw_only=True):
    """A job as it was when it was read. Times are Unix seconds.

    Chunks from `first_chunk` up to `next_chunk`, exclusive, are committed; `first_chunk` is above 0
    where the job extends another. `request` comes without its reference, which is kept if
    `has_media`; it goes on from the snapshot at `kept_chunk`, if there is one.
    """

    id: str
    tenant: str
    request: VideoRequest
    status: JobStatus
    error: str | None
    created_at: float
    updated_at: float
    completed_at: float | None
    first_chunk: int
    next_chunk: int
    num_chunks: int
    has_media: bool
    kept_chunk: int | None

    @property
    def chunks(self) -> range:
        """The committed ones."""
        return range(self.first_chunk, self.next_chunk)

    @property
    def is_finished(self) -> bool:
        return self.status not in ("queued", "in_progress")


class JobStore:
    """One row a job; every change is durable when the call returns.

    It may be used by any thread. Raises StorageError as `Database` does.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._table = Database(path, SCHEMA, SCHEMA_VERSION)

    @property
    def database(self) -> Database:
        """For tables that change together with the jobs."""
        return self._table

    def add(
        self,
        request: VideoRequest,
        *,
        num_chunks: int,
        first_chunk: int = 0,
        next_chunk: int = 0,
        kept_chunk: int | None = None,
    ) -> None:
        now = self._clock()
        columns: dict[str, Value] = {
            "id": request.request_id,
            "tenant": request.tenant,
            "request": msgspec.msgpack.encode(request.without_media()),
            "status": "queued",
            "created_at": now,
            "updated_at": now,
            "first_chunk": first_chunk,
            "next_chunk": next_chunk,
            "num_chunks": num_chunks,
            "has_media": request.has_reference,
            "kept_chunk": kept_chunk,
        }
        self._table.insert("jobs", columns)

    def get(self, job_id: str) -> StoredJob | None:
        rows = self._table.run("SELECT * FROM jobs WHERE id = ?", job_id)
        return self._as_job(rows[0]) if rows else None

    def all(self) -> list[StoredJob]:
        """In the order in which they were accepted."""
        rows = self._table.run("SELECT * FROM jobs ORDER BY created_at, id")
        return [self._as_job(row) for row in rows]

    def page(
        self, tenant: str, after: str | None, limit: int, *, newest_first: bool
    ) -> list[StoredJob]:
        """Up to `limit` jobs of a tenant by age, those behind job `after` if it is given."""
        rows = self._table.page("jobs", after, limit, newest_first=newest_first, tenant=tenant)
        return [self._as_job(row) for row in rows]

    def update_request(self, request: VideoRequest) -> None:
        """Replace what was asked for, less the reference, which stays as it is."""
        blob = msgspec.msgpack.encode(request.without_media())
        self._table.run(
            "UPDATE jobs SET request = ?, updated_at = ? WHERE id = ?",
            blob,
            self._clock(),
            request.request_id,
        )

    def advance(self, job_id: str, chunk: int) -> None:
        """Enter segment and snapshot of `chunk`, in the one statement that commits both."""
        self._table.run(
            "UPDATE jobs SET status = 'in_progress', next_chunk = ?, kept_chunk = ?, "
            "updated_at = ? WHERE id = ? AND next_chunk = ?",
            chunk + 1,
            chunk + 1,
            self._clock(),
            job_id,
            chunk,
        )

    def finish(self, job_id: str, status: EndStatus, error: str | None = None) -> None:
        """End a job; one that has ended before stays as it is."""
        now = self._clock()
        self._table.run(
            "UPDATE jobs SET status = ?, error = ?, updated_at = ?, completed_at = ? "
            "WHERE id = ? AND status IN ('queued', 'in_progress')",
            status,
            error,
            now,
            now,
            job_id,
        )

    def delete(self, job_id: str) -> None:
        self._table.run("DELETE FROM jobs WHERE id = ?", job_id)

    def close(self) -> None:
        self._table.close()

    def _as_job(self, row: sqlite3.Row) -> StoredJob:
        columns = dict(row)
        try:
            columns["request"] = msgspec.msgpack.decode(columns["request"], type=VideoRequest)
        except ValueError as error:
            raise StorageError(
                f"the request of job {row['id']!r} in {self._table.path} is damaged: {error}"
            ) from error
        columns["has_media"] = bool(columns["has_media"])
        return StoredJob(**columns)
