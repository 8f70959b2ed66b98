"""Batches of videos: how far each is, and what came of its lines."""

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


class LineError(msgspec.Struct, frozen=True):
    """What is wrong with a line of an input file; lines count from 1."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class StoredBatch(msgspec.Struct, frozen=True, kw_only=True):
    """A batch; times are Unix seconds. `reached` says when it came to each status."""

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
        """The batch when it has come to another status."""
        reached = self.reached | {status: now}
        return msgspec.structs.replace(self, status=status, reached=reached, **changes)


class BatchStore:
    """Batches, and a row for each line that is done; every change is durable when it returns."""

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
        """Replace what was known of a batch."""
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
        """Up to `limit` batches of a tenant, newest first, those behind `after` if it is given."""
        rows = self._table.page("batches", after, limit, newest_first=True, tenant=tenant)
        return [as_batch(row) for row in rows]

    def open(self) -> list[StoredBatch]:
        """All batches that are not over."""
        marks = ", ".join("?" * len(OPEN))
        rows = self._table.run(f"SELECT record FROM batches WHERE status IN ({marks})", *OPEN)
        return [as_batch(row) for row in rows]

    def enter(self, batch_id: str, line: int, data: bytes, *, is_good: bool) -> None:
        """What came of a line; one that is entered already stays as it is."""
        self._table.run(
            "INSERT OR IGNORE INTO batch_lines (batch_id, line, is_good, data) VALUES (?, ?, ?, ?)",
            batch_id,
            line,
            is_good,
            data,
        )

    def entered(self, batch_id: str) -> set[int]:
        """Lines that are done."""
        rows = self._table.run("SELECT line FROM batch_lines WHERE batch_id = ?", batch_id)
        return {row["line"] for row in rows}

    def counts(self, batch_id: str) -> tuple[int, int]:
        """Lines that came to a video, and others that are done."""
        rows = self._table.run(
            "SELECT COUNT(*) AS number, TOTAL(is_good) AS good FROM batch_lines WHERE batch_id = ?",
            batch_id,
        )
        good = int(rows[0]["good"])
        return good, rows[0]["number"] - good

    def results(self, batch_id: str, *, are_good: bool) -> Iterator[bytes]:
        """What was entered of lines of one outcome, in the order of the lines."""
        rows = self._table.run(
            "SELECT data FROM batch_lines WHERE batch_id = ? AND is_good = ? ORDER BY line",
            batch_id,
            are_good,
        )
        return (row["data"] for row in rows)


def as_batch(row: Any) -> StoredBatch:
    return msgspec.msgpack.decode(row["record"], type=StoredBatch)
