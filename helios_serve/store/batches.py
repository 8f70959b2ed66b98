"""Batches of requests: their status, and the result of each line of their input files."""

from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from helios_serve.store.database import Database

BatchStatus = Literal[
    "validating",
    "failed",
    "in_progress",
    "finalizing",
    "completed",
    "expired",
    "cancelling",
    "cancelled",
]
OPEN: tuple[BatchStatus, ...] = ("validating", "in_progress", "finalizing", "cancelling")
"""Statuses of batches that have not ended."""


class LineError(msgspec.Struct, frozen=True):
    """An error in an input file, at `line` (counted from 1) or, with None, in the whole file.

    `code`, `message` and `param` are those of the API's error object.
    """

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class StoredBatch(msgspec.Struct, frozen=True, kw_only=True):
    """A batch as stored. Times are Unix seconds.

    `total` is the number of lines in the input file, and `reached` the time at which the batch
    entered each status. `output_file_id` holds the results of lines that succeeded,
    `error_file_id` those of the others.
    """

    id: str
    tenant: str
    input_file_id: str
    endpoint: str
    completion_window: str
    created_at: float
    expires_at: float
    status: BatchStatus = "validating"
    metadata: dict[str, str] | None = None
    total: int = 0
    errors: tuple[LineError, ...] = ()
    reached: dict[str, float] = {}
    output_file_id: str | None = None
    error_file_id: str | None = None

    def at(self, status: BatchStatus, now: float, **changes: Any) -> "StoredBatch":
        """Return the batch with a new status, which it entered at time `now`, and other changes."""
        reached = self.reached | {status: now}
        return msgspec.structs.replace(self, status=status, reached=reached, **changes)


class BatchStore:
    """The batches of all tenants, and one row for each finished line.

    Every change is durable when the method returns. Raises StorageError if the disk fails.
    """

    def __init__(self, database: Database) -> None:
        self._table = database

    def add(self, batch: StoredBatch) -> None:
        self._table.insert(
            "batches",
            {
                "id": batch.id,
                "tenant": batch.tenant,
                "created_at": batch.created_at,
                "status": batch.status,
                "record": msgspec.msgpack.encode(batch),
            },
        )

    def save(self, batch: StoredBatch) -> None:
        """Replace the stored batch with the same id."""
        self._table.run(
            "UPDATE batches SET status = ?, record = ? WHERE id = ?",
            batch.status,
            msgspec.msgpack.encode(batch),
            batch.id,
        )

    def get(self, batch_id: str) -> StoredBatch | None:
        rows = self._table.run("SELECT record FROM batches WHERE id = ?", batch_id)
        return as_batch(rows[0]) if rows else None

    def page(self, tenant: str, after: str | None, limit: int) -> list[StoredBatch]:
        """Return up to `limit` batches of a tenant, newest first, starting after batch `after`."""
        rows = self._table.page("batches", after, limit, newest_first=True, tenant=tenant)
        return [as_batch(row) for row in rows]

    def open(self) -> list[StoredBatch]:
        """Return all batches that have not ended."""
        marks = ", ".join("?" * len(OPEN))
        rows = self._table.run(f"SELECT record FROM batches WHERE status IN ({marks})", *OPEN)
        return [as_batch(row) for row in rows]

    def record_line(self, batch_id: str, line: int, data: bytes, *, is_good: bool) -> None:
        """Store the result of a line. A line that already has a result keeps it.

        `data` is the line of the output file, and `is_good` whether a video was generated.
        """
        self._table.run(
            "INSERT OR IGNORE INTO batch_lines (batch_id, line, is_good, data) VALUES (?, ?, ?, ?)",
            batch_id,
            line,
            is_good,
            data,
        )

    def recorded_lines(self, batch_id: str) -> set[int]:
        """Return the numbers of the lines that have a result."""
        rows = self._table.run("SELECT line FROM batch_lines WHERE batch_id = ?", batch_id)
        return {row["line"] for row in rows}

    def counts(self, batch_id: str) -> tuple[int, int]:
        """Return the number of lines that succeeded, and of those that failed."""
        rows = self._table.run(
            "SELECT COUNT(*) AS number, TOTAL(is_good) AS good FROM batch_lines WHERE batch_id = ?",
            batch_id,
        )
        good = int(rows[0]["good"])
        return good, rows[0]["number"] - good

    def results(self, batch_id: str, *, are_good: bool) -> Iterator[bytes]:
        """Iterate over the results of the lines that succeeded, or failed, in line order."""
        rows = self._table.run(
            "SELECT data FROM batch_lines WHERE batch_id = ? AND is_good = ? ORDER BY line",
            batch_id,
            are_good,
        )
        return (row["data"] for row in rows)


def as_batch(row: Any) -> StoredBatch:
    return msgspec.msgpack.decode(row["record"], type=StoredBatch)
