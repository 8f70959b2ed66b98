"""The table of jobs: the request, status and progress of each video."""

import sqlite3
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Literal, NamedTuple
from zlib import crc32

import msgspec

from helios_serve.errors import StorageError
from helios_serve.logger import logger
from helios_serve.model_config import CHUNK_FRAMES
from helios_serve.stage_seconds import StageSeconds
from helios_serve.store.database import Database, Guard, Value, allow
from helios_serve.store.objects.uploads import UPLOAD_TABLES
from helios_serve.store.usage import USAGE_TABLE, DayUsage, UsageTable
from helios_serve.video_request import VideoRequest

EndStatus = Literal["completed", "failed", "cancelled"]
JobStatus = Literal["queued", "in_progress"] | EndStatus
UNFINISHED = "FROM jobs WHERE id = ? AND status IN ('queued', 'in_progress')"

SIDE_TABLES = """
CREATE TABLE deleted_jobs (id TEXT PRIMARY KEY NOT NULL);
CREATE TABLE damaged_jobs AS SELECT * FROM jobs WHERE FALSE;
"""
"""Jobs whose files are still to be deleted, and rows that cannot be read any more."""
SCHEMA_VERSION = 5
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
    frames_left INTEGER NOT NULL,
    start_chunk INTEGER,
    checksum INTEGER,
    queue_seconds REAL,
    encode_seconds REAL,
    denoise_seconds REAL,
    decode_seconds REAL
);
CREATE INDEX jobs_by_age ON jobs (tenant, created_at, id);
{USAGE_TABLE}{SIDE_TABLES}{UPLOAD_TABLES}"""
STAGE_COLUMNS = tuple(f"{stage}_seconds" for stage in StageSeconds._fields)
MIGRATIONS = {
    2: f"""
ALTER TABLE jobs ADD COLUMN start_chunk INTEGER;
ALTER TABLE jobs ADD COLUMN checksum INTEGER;
{SIDE_TABLES}""",
    3: "\n".join(
        f"ALTER TABLE {table} ADD COLUMN {column} REAL;"
        for table in ("jobs", "damaged_jobs")
        for column in STAGE_COLUMNS
    ),
    4: UPLOAD_TABLES,
}
"""Scripts that convert the tables of a version to the next version, by version."""


class StoredJob(msgspec.Struct, frozen=True, kw_only=True):
    """A job as stored. Times are Unix seconds.

    - `request`: without its reference, which is in a file if `has_media` is set.
    - `first_chunk`, `next_chunk`: the committed chunks are `first_chunk` to `next_chunk - 1`.
      `first_chunk` is above 0 for a fork, which does not have its parent's chunks, and for a video
      without an end, whose oldest chunks are deleted.
    - `num_chunks`: chunks of the whole video.
    - `kept_chunk`: the chunk of the stored snapshot, from which the job resumes; None without one.
    - `frames_left`: frames still to be generated; in an ended job, frames that never will be.
    - `start_chunk`: the chunk of the snapshot that the job began with; 0 if it began with its
      request, None if it was stored before this was recorded.
    - `checksum`: CRC-32 of the stored request; None if it was stored before this was recorded.
    - `queue_seconds`, `encode_seconds`, `denoise_seconds`, `decode_seconds`: the StageSeconds of
      its committed chunks; None if it was stored before they were recorded.
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
    start_chunk: int | None = None
    checksum: int | None = None
    queue_seconds: float | None = None
    encode_seconds: float | None = None
    denoise_seconds: float | None = None
    decode_seconds: float | None = None

    @property
    def spent(self) -> StageSeconds | None:
        """The time in each stage; None if it was not recorded."""
        if self.queue_seconds is None:
            return None
        return StageSeconds(
            self.queue_seconds,
            self.encode_seconds or 0.0,
            self.denoise_seconds or 0.0,
            self.decode_seconds or 0.0,
        )

    @property
    def chunks(self) -> range:
        """The committed chunks that are kept."""
        return range(self.first_chunk, self.next_chunk)

    @property
    def shown_chunks(self) -> range:
        """The chunks that playlists list: of a video without an end, its last `kept_chunks`."""
        kept = self.request.kept_chunks
        return self.chunks if kept is None else self.chunks[-kept:]

    @property
    def is_endless(self) -> bool:
        """Whether the video has no end of its own."""
        return self.request.kept_chunks is not None

    def oldest_kept(self, next_chunk: int) -> int:
        """The first chunk that is kept when the job stands at `next_chunk`."""
        kept = self.request.kept_chunks
        return self.first_chunk if kept is None else max(self.first_chunk, next_chunk - 2 * kept)

    def frames_after(self, chunk: int) -> int:
        """Return the number of frames of the video after `chunk`."""
        return max(0, self.request.params.num_frames - CHUNK_FRAMES * (chunk + 1))

    @property
    def is_finished(self) -> bool:
        return self.status not in ("queued", "in_progress")


class NewRow(NamedTuple):
    """A job to add. `frames_before` frames of it exist already. Other fields: see StoredJob."""

    request: VideoRequest
    num_chunks: int
    first_chunk: int = 0
    next_chunk: int = 0
    kept_chunk: int | None = None
    frames_before: int = 0


class JobStore:
    """The table of jobs, with a row for each.

    Every change is durable when the method returns. Thread-safe. Raises StorageError as `Database`
    does.
    """

    def __init__(
        self, path: Path, clock: Callable[[], float] = time.time, *, guard: Guard = allow
    ) -> None:
        self._clock = clock
        self._table = Database(path, SCHEMA, SCHEMA_VERSION, MIGRATIONS, guard=guard)

    @property
    def database(self) -> Database:
        """The database, for tables that change in one transaction with the jobs."""
        return self._table

    def add(self, request: VideoRequest, num_chunks: int) -> None:
        """Add a job that starts from its request, without a limit."""
        self.add_all([NewRow(request, num_chunks)])

    def add_all(self, rows: Sequence[NewRow], frames_per_day: int | None = None) -> None:
        """Add jobs in one transaction.

        Frames that do not exist yet are charged to the tenant's daily limit, `frames_per_day`.
        Raises CapacityError if they exceed what is left of the limit, and InvalidRequestError if
        one job alone exceeds the limit. Then none is added.
        """
        now = self._clock()
        with self._table.transaction() as run:
            for row in rows:
                columns = columns_of(row, now)
                names, marks = ", ".join(columns), ", ".join("?" * len(columns))
                frames = int(columns["frames_left"] or 0)
                UsageTable(run).grant(row.request.tenant, now, frames, frames_per_day)
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
            "UPDATE jobs SET request = ?, checksum = ?, updated_at = ? WHERE id = ?",
            blob,
            crc32(blob),
            self._clock(),
            request.request_id,
        )

    def advance(self, job: StoredJob, chunk: int, spent: StageSeconds) -> None:
        """Commit `chunk`: its segment, its snapshot and the usage, in one transaction.

        `spent` is the time that it took. The frames of a video without an end are granted now.
        """
        job_id = job.id
        now = self._clock()
        more = ", ".join(f"{column} = {column} + ?" for column in STAGE_COLUMNS)
        with self._table.transaction() as run:
            rows = run(
                "SELECT tenant, frames_left FROM jobs WHERE id = ? AND next_chunk = ?",
                job_id,
                chunk,
            )
            if not rows:
                return
            tenant, before = rows[0]
            left = min(
                before, job.frames_after(chunk)
            )  # a chunk that is generated again counts once
            frames = CHUNK_FRAMES if job.is_endless else before - left
            run(
                "UPDATE jobs SET status = 'in_progress', first_chunk = ?, next_chunk = ?, "
                f"kept_chunk = ?, frames_left = ?, updated_at = ?, {more} WHERE id = ?",
                job.oldest_kept(chunk + 1),
                chunk + 1,
                chunk + 1,
                left,
                now,
                *spent,
                job_id,
            )
            granted = CHUNK_FRAMES if job.is_endless else 0
            UsageTable(run).add(tenant, now, frames, spent.on_workers, granted=granted)

    def go_back(self, job_id: str, next_chunk: int, kept_chunk: int | None) -> None:
        """Set an unfinished job back, so that chunks from `next_chunk` on are generated again."""
        self._table.run(
            "UPDATE jobs SET next_chunk = ?, kept_chunk = ?, updated_at = ? WHERE id = ?",
            next_chunk,
            kept_chunk,
            self._clock(),
            job_id,
        )

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
        """Delete a job. If it never started, its request is removed from the usage too.

        It is among `deleted` until `forget_deleted`, which is called when its files are deleted.
        """
        with self._table.transaction() as run:
            for tenant, created_at, left, status in run(
                f"SELECT tenant, created_at, frames_left, status {UNFINISHED}", job_id
            ):
                UsageTable(run).refund(tenant, created_at, left, int(status == "queued"))
            for _ in run("SELECT id FROM jobs WHERE id = ?", job_id):
                run("INSERT OR IGNORE INTO deleted_jobs VALUES (?)", job_id)
            run("DELETE FROM jobs WHERE id = ?", job_id)

    def deleted(self) -> list[str]:
        """Return the deleted jobs whose files may still exist."""
        return [row["id"] for row in self._table.run("SELECT id FROM deleted_jobs")]

    def forget_deleted(self, job_id: str) -> None:
        """Forget a deleted job, after its files were deleted."""
        self._table.run("DELETE FROM deleted_jobs WHERE id = ?", job_id)

    def set_damaged_aside(self) -> list[str]:
        """Move rows whose request cannot be read to the table `damaged_jobs`. Returns their ids."""
        damaged = []
        for row in self._table.run("SELECT * FROM jobs"):
            try:
                self._as_job(row)
            except StorageError as error:
                logger.error("%s; its row is kept in the table damaged_jobs", error)
                damaged.append(str(row["id"]))
        for job_id in damaged:
            self._table.run_all(
                ("INSERT INTO damaged_jobs SELECT * FROM jobs WHERE id = ?", (job_id,)),
                ("DELETE FROM jobs WHERE id = ?", (job_id,)),
            )
        return damaged

    def usage(self, tenant: str, first: date, last: date) -> list[DayUsage]:
        """Return a tenant's usage on each active day from `first` to `last`, inclusive."""
        return UsageTable(self._table.run).days(tenant, first, last)

    def close(self) -> None:
        self._table.close()

    def _as_job(self, row: sqlite3.Row) -> StoredJob:
        columns = dict(row)
        try:
            if columns["checksum"] not in (None, crc32(columns["request"])):
                raise ValueError("its checksum does not match")
            columns["request"] = msgspec.msgpack.decode(columns["request"], type=VideoRequest)
        except (ValueError, TypeError) as error:
            raise StorageError(
                f"the request of job {row['id']!r} in {self._table.path} is damaged: {error}"
            ) from error
        columns["has_media"] = bool(columns["has_media"])
        return StoredJob(**columns)


def columns_of(row: NewRow, now: float) -> dict[str, Value]:
    """Return the columns of a job that is accepted at time `now`."""
    request = row.request
    blob = msgspec.msgpack.encode(request.without_media())
    endless = request.kept_chunks is not None  # its frames are granted as they are made
    return {
        "id": request.request_id,
        "tenant": request.tenant,
        "request": blob,
        "status": "queued",
        "created_at": now,
        "updated_at": now,
        "first_chunk": row.first_chunk,
        "next_chunk": row.next_chunk,
        "num_chunks": row.num_chunks,
        "has_media": request.has_reference,
        "kept_chunk": row.kept_chunk,
        "frames_left": 0 if endless else max(0, request.params.num_frames - row.frames_before),
        "start_chunk": row.kept_chunk or 0,
        "checksum": crc32(blob),
        **dict.fromkeys(STAGE_COLUMNS, 0.0),
    }
