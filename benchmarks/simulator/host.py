"""A simulated host: the cores that the lanes of several workers need."""

import itertools
from typing import Protocol

ROUNDING = 1e-9
"""Difference of speeds that is an error of rounding."""


class Guest(Protocol):
    """A worker on a host."""

    def advance(self, now: float) -> None:
        """Let its jobs go on up to `now`."""

    def at_speed(self, host_speed: float) -> None:
        """Its lanes get this share of the cores that they need, at most 1."""


class Host:
    """A machine with `cores`. If these are too few, all its workers get the same share of them."""

    def __init__(self, cores: float) -> None:
        self.cores = cores
        self._speed = 1.0
        self._needed = 0.0
        self._guests: dict[str, Guest] = {}
        self._changed = False

    def enter(self, name: str, guest: Guest) -> None:
        self._guests[name] = guest
        guest.at_speed(self._speed)

    def leave(self, name: str, cores: float, now: float) -> None:
        """A worker has gone, which needed `cores`."""
        if self._guests.pop(name, None) is not None:
            self.change(-cores, now)

    def change(self, more: float, now: float) -> None:
        """The workers need `more` cores than before, or fewer."""
        self._needed = max(0.0, self._needed + more)
        speed = min(1.0, self.cores / self._needed) if self._needed > 0 else 1.0
        if abs(speed - self._speed) <= ROUNDING:
            return
        for guest in self._guests.values():
            guest.advance(now)
            guest.at_speed(speed)
        self._speed = speed
        self._changed = True

    def take_changed(self) -> tuple[str, ...]:
        """Return the workers whose jobs end at another time than before the last call."""
        if not self._changed:
            return ()
        self._changed = False
        return tuple(self._guests)


class Places:
    """The hosts of workers, `number` on each. A new worker takes the first free place."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._taken: dict[str, int] = {}

    def take(self, name: str) -> int:
        """Return the number of the host on which a worker is to run."""
        used = set(self._taken.values())
        place = next(place for place in itertools.count() if place not in used)
        self._taken[name] = place
        return place // self._number

    def free(self, name: str) -> None:
        del self._taken[name]
