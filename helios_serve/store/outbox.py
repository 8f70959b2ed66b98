"""Events of videos that have ended, until somebody was told of them."""

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
    """A video has ended; a cancelled one has failed. Times are Unix seconds.

    It was tried to be delivered `attempts` times, and is to be from `next_at` on.
    """

    id: str
    type: EventType
    video_id: str
    created_at: float
    attempts: int
    next_at: float


class Outbox:
    """Beside the table of jobs, so that the statement that ends a job also enters its event.

    From when it is opened every job that ends has one, until `drop`. An event outlives its video.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        for statement in (TABLE, INDEX, TRIGGER):
            database.run(statement)

    @staticmethod
    def drop(database: Database) -> None:
        """Enter no more events, and forget those that are there."""
        database.run("DROP TRIGGER IF EXISTS event_of_end")
        database.run("DROP TABLE IF EXISTS events")

    def due(self, now: float, limit: int, *, but: Collection[str] = ()) -> list[Event]:
        """Up to `limit` events to be delivered, those that wait longest first."""
        marks = ", ".join("?" * len(but))
        rows = self._database.run(
            f"SELECT * FROM events WHERE next_at <= ? AND id NOT IN ({marks}) "
            "ORDER BY next_at LIMIT ?",
            now,
            *but,
            limit,
        )
        return [Event(**dict(row)) for row in rows]

    def postpone(self, event_id: str, until: float) -> None:
        """Another attempt has failed."""
        self._database.run(
            "UPDATE events SET attempts = attempts + 1, next_at = ? WHERE id = ?", until, event_id
        )

    def forget(self, event_id: str) -> None:
        """It was delivered, or given up."""
        self._database.run("DELETE FROM events WHERE id = ?", event_id)
