"""The outbox of webhook events: one for each video that ended, until it is delivered."""

from collections.abc import Collection
from typing import Literal

import msgspec

from helios_serve.store.database import Database

EventType = Literal["video.completed", "video.failed"]

TABLE = """
CREATE TABLE IF NOT EXISTS events (
    id TEXT PRIMARY KEY NOT NULL,
    type TEXT NOT NULL,
    video_id TEXT NOT NULL,
    created_at REAL NOT NULL,
    attempts INTEGER NOT NULL,
    next_at REAL NOT NULL
)
"""
INDEX = "CREATE INDEX IF NOT EXISTS events_by_time ON events (next_at)"
TRIGGER = """
CREATE TRIGGER IF NOT EXISTS event_of_end AFTER UPDATE OF status ON jobs
WHEN OLD.status IN ('queued', 'in_progress') AND NEW.status NOT IN ('queued', 'in_progress')
BEGIN
    INSERT INTO events VALUES (
        'evt_' || lower(hex(randomblob(16))),
        iif(NEW.status = 'completed', 'video.completed', 'video.failed'),
        NEW.id, NEW.updated_at, 0, NEW.updated_at
    );
END
"""


class Event(msgspec.Struct, frozen=True):
    """A video ended. Cancellation counts as failure. Times are Unix seconds.

    `attempts` deliveries have failed; the next one is due at `next_at`.
    """

    id: str
    type: EventType
    video_id: str
    created_at: float
    attempts: int
    next_at: float


class Outbox:
    """The table of events, in the database of the jobs.

    A trigger inserts the event in the transaction that ends its job. It exists from the first time
    the outbox is opened until `drop`. An event remains if its video is deleted.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        for statement in (TABLE, INDEX, TRIGGER):
            database.run(statement)

    @staticmethod
    def drop(database: Database) -> None:
        """Delete all events and create no more."""
        database.run("DROP TRIGGER IF EXISTS event_of_end")
        database.run("DROP TABLE IF EXISTS events")

    def due(self, now: float, limit: int, *, exclude: Collection[str] = ()) -> list[Event]:
        """Return up to `limit` events that are due, the longest overdue first, except `exclude`."""
        marks = ", ".join("?" * len(exclude))
        rows = self._database.run(
            f"SELECT * FROM events WHERE next_at <= ? AND id NOT IN ({marks}) "
            "ORDER BY next_at LIMIT ?",
            now,
            *exclude,
            limit,
        )
        return [Event(**dict(row)) for row in rows]

    def postpone(self, event_id: str, until: float) -> None:
        """Count a failed delivery and schedule the next one at `until`."""
        self._database.run(
            "UPDATE events SET attempts = attempts + 1, next_at = ? WHERE id = ?", until, event_id
        )

    def forget(self, event_id: str) -> None:
        """Delete an event that was delivered or given up."""
        self._database.run("DELETE FROM events WHERE id = ?", event_id)
