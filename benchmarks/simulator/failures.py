"""What goes wrong in a simulation, and when: deaths of workers and cells, and drains."""

from collections.abc import Sequence
from typing import NamedTuple

from helios_serve.errors import InvalidRequestError
from helios_serve.options.simulation import FleetOptions


class Incident(NamedTuple):
    """At `time`, in seconds since the start of the load, something happens to some numbers."""

    time: float
    numbers: tuple[int, ...]


class Failures(NamedTuple):
    """Deaths of workers, deaths of cells, and drains of workers; `mtbf` are hours of one worker."""

    workers: tuple[Incident, ...]
    cells: tuple[Incident, ...]
    drains: tuple[Incident, ...]
    mtbf: float | None

    @classmethod
    def of(cls, options: FleetOptions, workers: int) -> "Failures":
        """Parse the options of a fleet of `workers`. Raises InvalidRequestError."""
        return cls(
            incidents(options.kill, workers, "kill"),
            incidents(options.kill_cell, options.cells, "kill_cell"),
            incidents(options.drain, workers, "drain"),
            options.mtbf,
        )


def incidents(texts: Sequence[str], count: int, param: str) -> tuple[Incident, ...]:
    """Parse SECONDS:NUMBER or SECONDS:FIRST-LAST, numbers from 0 to `count` - 1.

    Raises InvalidRequestError.
    """
    return tuple(incident(text, count, param) for text in texts)


def incident(text: str, count: int, param: str) -> Incident:
    time, _, numbers = text.partition(":")
    first, _, last = numbers.partition("-")
    try:
        found = Incident(float(time), tuple(range(int(first), int(last or first) + 1)))
    except ValueError:
        found = Incident(-1.0, ())
    if found.time < 0 or not found.numbers or found.numbers[-1] >= count:
        raise InvalidRequestError(
            f"got --{param.replace('_', '-')} {text}, expected SECONDS:NUMBER or "
            f"SECONDS:FIRST-LAST with numbers from 0 to {count - 1}",
            param=param,
        )
    return found
