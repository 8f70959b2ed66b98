"""What tenants have asked for and got, by day: a table beside that of the jobs."""

from datetime import UTC, date, datetime, timedelta

import msgspec

from helios_serve.errors import CapacityError, InvalidRequestError
from helios_serve.store.database import Run

USAGE_TABLE = """
CREATE TABLE usage (
    tenant TEXT NOT NULL,
    day TEXT NOT NULL,
    requests INTEGER NOT NULL DEFAULT 0,
    granted INTEGER NOT NULL DEFAULT 0,
    frames INTEGER NOT NULL DEFAULT 0,
    device_seconds REAL NOT NULL DEFAULT 0,
    PRIMARY KEY (tenant, day)
) WITHOUT ROWID;
"""


class DayUsage(msgspec.Struct, frozen=True):
    """A tenant's day of UTC.

    `requests` were accepted on it, and `granted` frames of them, less those that will not be made.
    `frames` were made and stored on it, for which workers took `device_seconds`.
    """

    day: date
    requests: int
    granted: int
    frames: int
    device_seconds: float


class UsageTable:
    """Every method is part of the transaction in which `run` runs statements.

    Times are Unix seconds.
    """

    def __init__(self, run: Run) -> None:
        self._run = run

    def grant(self, tenant: str, now: float, frames: int, frames_per_day: int | None) -> None:
        """Count a request for `frames`.

        Raises CapacityError if they are not left of the day's, InvalidRequestError if they are more
        than any day's.
        """
        day = day_of(now)
        if frames_per_day is not None:
            if frames > frames_per_day:
                raise InvalidRequestError(
                    f"got {frames} frames to make, expected at most {frames_per_day}, which is "
                    f"what tenant {tenant} may ask for in a day",
                    param="num_frames",
                )
            rows = self._run("SELECT granted FROM usage WHERE tenant = ? AND day = ?", tenant, day)
            granted = rows[0]["granted"] if rows else 0
            if granted + frames > frames_per_day:
                raise CapacityError(
                    f"got {frames} frames to make, and tenant {tenant} has asked for {granted} of "
                    f"the {frames_per_day} that it may have in a day",
                    code="tenant_quota",
                    retry_after=seconds_to_midnight(now),
                )
        self._add(tenant, day, requests=1, granted=frames)

    def give_back(self, tenant: str, asked_at: float, frames: int, requests: int = 0) -> None:
        """Frames, and requests, of those that were granted at `asked_at` will not be made."""
        self._add(tenant, day_of(asked_at), requests=-requests, granted=-frames)

    def add(self, tenant: str, now: float, frames: int, device_seconds: float) -> None:
        """Frames were made."""
        self._add(tenant, day_of(now), frames=frames, device_seconds=device_seconds)

    def days(self, tenant: str, first: date, last: date) -> list[DayUsage]:
        """Those on which something happened, from `first` to `last`, both included."""
        rows = self._run(
            "SELECT day, requests, granted, frames, device_seconds FROM usage "
            "WHERE tenant = ? AND day BETWEEN ? AND ? ORDER BY day",
            tenant,
            first.isoformat(),
            last.isoformat(),
        )
        return [DayUsage(date.fromisoformat(day), *counts) for day, *counts in rows]

    def _add(self, tenant: str, day: str, **counts: float) -> None:
        names = ", ".join(counts)
        marks = ", ".join("?" * len(counts))
        sums = ", ".join(f"{name} = {name} + excluded.{name}" for name in counts)
        self._run(
            f"INSERT INTO usage (tenant, day, {names}) VALUES (?, ?, {marks}) "
            f"ON CONFLICT (tenant, day) DO UPDATE SET {sums}",
            tenant,
            day,
            *counts.values(),
        )


def utc(time: float) -> datetime:
    return datetime.fromtimestamp(time, UTC)


def day_of(time: float) -> str:
    """As text that sorts by time: YYYY-MM-DD in UTC."""
    return utc(time).date().isoformat()


def seconds_to_midnight(time: float) -> float:
    """Until the next day of UTC begins."""
    now = utc(time)
    midnight = datetime.combine(now.date() + timedelta(days=1), datetime.min.time(), UTC)
    return (midnight - now).total_seconds()
