"""The usage of tenants by day, in a table of the jobs' database."""

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
    """A tenant's usage on one UTC day.

    - `requests`: requests accepted on that day.
    - `granted`: frames in those requests, less frames that will not be generated.
    - `frames`: frames generated and stored on that day.
    - `device_seconds`: the time that workers spent on them.
    """

    day: date
    requests: int
    granted: int
    frames: int
    device_seconds: float


class UsageTable:
    """Reads and updates usage within the transaction in which `run` executes statements.

    Times are Unix seconds.
    """

    def __init__(self, run: Run) -> None:
        self._run = run

    def grant(self, tenant: str, now: float, frames: int, frames_per_day: int | None) -> None:
        """Charge a request for `frames` to the tenant's daily limit, `frames_per_day`.

        Raises CapacityError if they exceed what is left of the limit today, and InvalidRequestError
        if they exceed the limit itself. None means no limit.
        """
        day = day_of(now)
        if frames_per_day is not None:
            if frames > frames_per_day:
                raise InvalidRequestError(
                    f"got a request for {frames} frames, expected at most {frames_per_day}, the "
                    f"daily limit of tenant {tenant}",
                    param="num_frames",
                )
            rows = self._run("SELECT granted FROM usage WHERE tenant = ? AND day = ?", tenant, day)
            granted = rows[0]["granted"] if rows else 0
            if granted + frames > frames_per_day:
                raise CapacityError(
                    f"got a request for {frames} frames, expected at most "
                    f"{max(0, frames_per_day - granted)}: tenant {tenant} has requested {granted} "
                    f"of its {frames_per_day} frames today (UTC)",
                    code="tenant_quota",
                    retry_after=seconds_to_midnight(now),
                )
        self._add(tenant, day, requests=1, granted=frames)

    def refund(self, tenant: str, asked_at: float, frames: int, requests: int = 0) -> None:
        """Refund frames and requests, charged at `asked_at`, that will not be generated."""
        self._add(tenant, day_of(asked_at), requests=-requests, granted=-frames)

    def add(
        self, tenant: str, now: float, frames: int, device_seconds: float, *, granted: int = 0
    ) -> None:
        """Count generated frames and the device time spent on them.

        `granted` of them were not charged when they were requested.
        """
        counts = {"granted": granted} if granted else {}
        self._add(tenant, day_of(now), frames=frames, device_seconds=device_seconds, **counts)

    def days(self, tenant: str, first: date, last: date) -> list[DayUsage]:
        """Return the usage of each active day from `first` to `last`, inclusive."""
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
    """Return the UTC day as YYYY-MM-DD, which sorts by time."""
    return utc(time).date().isoformat()


def seconds_to_midnight(time: float) -> float:
    """Return the seconds until the next UTC day."""
    now = utc(time)
    midnight = datetime.combine(now.date() + timedelta(days=1), datetime.min.time(), UTC)
    return (midnight - now).total_seconds()
