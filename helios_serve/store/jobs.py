"""The table of jobs: the request, status and progress of each video."""

import sqlite3
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Literal

import msgspec

from helios_serve.errors import StorageError
from helios_serve.store.database import Database, Value
from helios_serve.store.usage import USAGE_TABLE, DayUsage, UsageTable
from helios_serve.video_request import VideoRequest

EndStatus = Literal["completed", "failed", "cancelled"]
JobStatus = Literal["queued", "in_progress"] | EndStatus
UNFINISHED = "FROM jobs WHERE id = ? AND status IN ('queued', 'in_progress')"

SCHEMA_VERSION = 2
SCHEMA = f"""
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
    kept_chunk INTEGER,
    frames_left INTEGER NOT NULL
);
CREATE INDEX jobs_by_age ON jobs (tenant, created_at, id);
{USAGE_TABLE}"""


class StoredJob(msgspec.Struct, frozen=True, kw_only=True):
    """A job as stored. Times are Unix seconds.

    - `request`: without its reference, which is in a file if `has_media` is set.
    - `first_chunk`, `next_chunk`: the committed chunks are `first_chunk` to `next_chunk - 1`.
      `first_chunk` is above 0 for a fork, which does not have its parent's chunks.
    - `num_chunks`: chunks of the whole video.
    - `kept_chunk`: the chunk of the stored snapshot, from which the job resumes; None without one.
    - `frames_left`: frames still to be generated; in an ended job, frames that never will be.
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
    frames_left: int

    @property
    def chunks(self) -> range:
        """The committed chunks."""
        return range(self.first_chunk, self.next_chunk)

    @property
    def is_finished(self) -> bool:
        return self.status not in ("queued", "in_progress")


class JobStore:
    """The table of jobs, one row each. Every change is durable when the method returns.

    Thread-safe. Raises StorageError as `Database` does.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._table = Database(path, SCHEMA, SCHEMA_VERSION)

    @property
    def database(self) -> Database:
        """The database, for tables that change in one transaction with the jobs."""
        return self._table

    def add(
        self,
        request: VideoRequest,
        *,
        num_chunks: int,
        first_chunk: int = 0,
        next_chunk: int = 0,
        kept_chunk: int | None = None,
        frames_before: int = 0,
        frames_per_day: int | None = None,
    ) -> None:
        """Add a job, whose first `frames_before` frames exist already.

        The other frames are charged to its tenant's daily limit, `frames_per_day`. Raises
        CapacityError if they exceed what is left of it, and InvalidRequestError if they exceed the
        limit itself.
        """
        now = self._clock()
        frames = max(0, request.params.num_frames - frames_before)
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
            "frames_left": frames,
        }
        names, marks = ", ".join(columns), ", ".join("?" * len(columns))
        with self._table.transaction() as run:
            UsageTable(run).grant(request.tenant, now, frames, frames_per_day)
            run(f"INSERT INTO jobs ({names}) VALUES ({marks})", *columns.values())

    def get(self, job_id: str) -> StoredJob | None:
        rows = self._table.run("SELECT * FROM jobs WHERE id = ?", job_id)
        return self._as_job(rows[0]) if rows else None

    def all(self) -> list[StoredJob]:
        """Return all jobs, in the order in which they were accepted."""
        rows = self._table.run("SELECT * FROM jobs ORDER BY created_at, id")
        return [self._as_job(row) for row in rows]

    def unfinished(self) -> list[StoredJob]:
        """Return the jobs that have not ended, in the order in which they were accepted."""
        rows = self._table.run(
            "SELECT * FROM jobs WHERE status IN ('queued', 'in_progress') ORDER BY created_at, id"
        )
        return [self._as_job(row) for row in rows]

    def page(
        self, tenant: str, after: str | None, limit: int, *, newest_first: bool
    ) -> list[StoredJob]:
        """Return up to `limit` jobs of a tenant ordered by age, starting after the job `after`."""
        rows = self._table.page("jobs", after, limit, newest_first=newest_first, tenant=tenant)
        return [self._as_job(row) for row in rows]

    def ended_before(self, limit: float) -> list[StoredJob]:
        """Return the jobs that ended before `limit`, in Unix seconds."""
        rows = self._table.run("SELECT * FROM jobs WHERE completed_at < ?", limit)
        return [self._as_job(row) for row in rows]

    def update_request(self, request: VideoRequest) -> None:
        """Replace the request of a job. Its reference does not change."""
        blob = msgspec.msgpack.encode(request.without_media())
        self._table.run(
            "UPDATE jobs SET request = ?, updated_at = ? WHERE id = ?",
            blob,
            self._clock(),
            request.request_id,
        )

    def advance(self, job_id: str, chunk: int, *, frames_left: int, device_seconds: float) -> None:
        """Commit `chunk`: its segment, its snapshot and the usage, in one transaction.

        `frames_left` is the number of frames after the chunk, and `device_seconds` the time that
        workers spent on it.
        """
        now = self._clock()
        with self._table.transaction() as run:
            rows = run(
                "SELECT tenant, frames_left FROM jobs WHERE id = ? AND next_chunk = ?",
                job_id,
                chunk,
            )
            if not rows:
                return
            run(
                "UPDATE jobs SET status = 'in_progress', next_chunk = ?, kept_chunk = ?, "
                "frames_left = ?, updated_at = ? WHERE id = ?",
                chunk + 1,
                chunk + 1,
                frames_left,
                now,
                job_id,
            )
            tenant, before = rows[0]
            UsageTable(run).add(tenant, now, max(0, before - frames_left), device_seconds)

    def finish(self, job_id: str, status: EndStatus, error: str | None = None) -> None:
        """End a job, unless it has ended already.

        Frames that were not generated are returned to its tenant's daily limit.
        """
        now = self._clock()
        with self._table.transaction() as run:
            rows = run(f"SELECT tenant, created_at, frames_left {UNFINISHED}", job_id)
            if not rows:
                return
            run(
                "UPDATE jobs SET status = ?, error = ?, updated_at = ?, completed_at = ? "
                "WHERE id = ?",
                status,
                error,
                now,
                now,
                job_id,
            )
            UsageTable(run).refund(*rows[0])

    def delete(self, job_id: str) -> None:
        """Delete a job. If it never started, its request is removed from the usage too."""
        with self._table.transaction() as run:
            for tenant, created_at, left, status in run(
                f"SELECT tenant, created_at, frames_left, status {UNFINISHED}", job_id
            ):
                UsageTable(run).refund(tenant, created_at, left, int(status == "queued"))
            run("DELETE FROM jobs WHERE id = ?", job_id)

    def usage(self, tenant: str, first: date, last: date) -> list[DayUsage]:
        """Return a tenant's usage on each active day from `first` to `last`, inclusive."""
        return UsageTable(self._table.run).days(tenant, first, last)

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
