"""How the sessions of a run ended: every offered one is counted once."""

from collections import Counter
from collections.abc import Sequence

import msgspec

from helios_serve.benchmarks.measure.record import SessionRecord


class Outcomes(msgspec.Struct, frozen=True):
    """Numbers of sessions. `refused` and `failures` are by the server's code."""

    offered: int
    completed: int
    failed: int
    refused: dict[str, int]
    timed_out: int
    cancelled: int
    failures: dict[str, int]

    @classmethod
    def of(cls, records: Sequence[SessionRecord]) -> "Outcomes":
        ends = Counter(record.outcome for record in records)
        return cls(
            offered=len(records),
            completed=ends["completed"],
            failed=ends["failed"],
            refused=codes_of(records, "refused"),
            timed_out=ends["timed_out"],
            cancelled=ends["cancelled"],
            failures=codes_of(records, "failed"),
        )

    @property
    def accounted(self) -> int:
        """Sessions whose end is known."""
        refused = sum(self.refused.values())
        return self.completed + self.failed + refused + self.timed_out + self.cancelled


def codes_of(records: Sequence[SessionRecord], outcome: str) -> dict[str, int]:
    return dict(Counter(record.code or "" for record in records if record.outcome == outcome))


def max_concurrency(records: Sequence[SessionRecord]) -> int:
    """Return the most sessions that ran at the same time, from sending to their ends."""
    changes = [
        change
        for record in records
        if record.sent is not None and record.ended is not None
        for change in ((record.sent, 1), (record.ended, -1))
    ]
    most = now = 0
    for _, change in sorted(changes):
        now += change
        most = max(most, now)
    return most
