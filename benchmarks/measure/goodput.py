"""Goodput: which sessions meet a service level objective."""

from collections.abc import Sequence
from typing import NamedTuple

from helios_serve.benchmarks.measure.metrics import session_metrics
from helios_serve.benchmarks.measure.record import SessionRecord
from helios_serve.errors import InvalidRequestError

KEYS = ("ttfc", "e2el", "icl", "stall", "rtf")


class Objective(NamedTuple):
    """One bound: `key` is at most `limit`, in seconds or as a ratio (rtf)."""

    key: str
    limit: float


class Slo(NamedTuple):
    """The bounds that a good session meets; without any, each completed session is good."""

    objectives: tuple[Objective, ...] = ()

    @classmethod
    def parse(cls, texts: Sequence[str]) -> "Slo":
        """Parse KEY:VALUE, in milliseconds as in vLLM. Raises InvalidRequestError."""
        return cls(tuple(map(parse_objective, texts)))

    def is_met(self, record: SessionRecord, buffer: float) -> bool:
        """Return whether a session was completed within all bounds, its own from a trace included.

        `buffer` is the player's start-up buffer in seconds. A value that the timing mode cannot
        give, such as ttfc with polling, is not met.
        """
        if record.outcome != "completed":
            return False
        found = session_metrics(record, buffer)
        if record.slo_ms is not None and (found.e2el is None or 1000 * found.e2el > record.slo_ms):
            return False
        values = {
            "ttfc": found.ttfc,
            "e2el": found.e2el,
            "icl": max(found.icls, default=0.0) if record.chunks else None,
            "stall": found.stall_seconds,
            "rtf": 0.0 if len(record.chunks) == 1 else found.session_rtf,
        }
        met = ((values[key], limit) for key, limit in self.objectives)
        return all(value is not None and value <= limit for value, limit in met)


def parse_objective(text: str) -> Objective:
    key, _, number = text.partition(":")
    try:
        limit = float(number)
    except ValueError:
        limit = -1.0
    if key not in KEYS or not limit >= 0:
        raise InvalidRequestError(
            f"got --goodput {text!r}, expected KEY:VALUE with one of {', '.join(KEYS)} and a "
            "number of milliseconds (of rtf: a ratio)",
            param="goodput",
        )
    return Objective(key, limit if key == "rtf" else limit / 1000)
