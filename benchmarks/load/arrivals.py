"""Arrival processes: at which times sessions start.

Times are drawn once, before a run, and never rescaled: stretching them so that N sessions take
exactly N / rate seconds would remove the variance of a Poisson process.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, count, repeat, takewhile
from typing import Protocol

import numpy as np

from helios_serve.errors import InvalidRequestError

Random = np.random.Generator


class ArrivalProcess(Protocol):
    """A process whose sessions start at `times`: ascending seconds from 0, without end."""

    def times(self, random: Random) -> Iterator[float]: ...


def draw_times(
    process: ArrivalProcess,
    random: Random,
    *,
    num: int | None = None,
    duration: float = math.inf,
) -> list[float]:
    """Draw the first `num` times of a process, as far as they lie within `duration` seconds."""
    times = takewhile(lambda time: time < duration, process.times(random))
    return list(times if num is None else (time for time, _ in zip(times, range(num))))  # noqa: B905


@dataclass(frozen=True)
class AtOnce:
    """All sessions start at once."""

    def times(self, random: Random) -> Iterator[float]:  # noqa: ARG002
        return repeat(0.0)


@dataclass(frozen=True)
class ConstantArrivals:
    """A session starts every 1 / `rate` seconds, the first one at 0."""

    rate: float

    def times(self, random: Random) -> Iterator[float]:  # noqa: ARG002
        return (index / self.rate for index in count())


@dataclass(frozen=True)
class GammaArrivals:
    """Times between sessions have a gamma distribution with mean 1 / `rate`.

    Its shape is `burstiness`, as in vLLM: 1 is a Poisson process.
    """

    rate: float
    burstiness: float = 1.0

    def times(self, random: Random) -> Iterator[float]:
        scale = 1 / (self.rate * self.burstiness)
        return accumulate(random.gamma(self.burstiness, scale) for _ in count())


@dataclass(frozen=True)
class BurstArrivals:
    """`size` sessions start together, every `size` / `rate` seconds."""

    rate: float
    size: int

    def times(self, random: Random) -> Iterator[float]:  # noqa: ARG002
        return (index // self.size * self.size / self.rate for index in count())


class RateCurve(Protocol):
    """A rate that changes over time: sessions per second at `time`, at most `peak`."""

    @property
    def peak(self) -> float: ...

    def at(self, time: float) -> float: ...


@dataclass(frozen=True)
class Ramp:
    """A rate that goes from `start` to `end` in `seconds`, and stays there."""

    start: float
    end: float
    seconds: float
    is_exponential: bool = False

    @property
    def peak(self) -> float:
        return max(self.start, self.end)

    def at(self, time: float) -> float:
        part = min(1.0, time / self.seconds)
        if self.is_exponential:
            return self.start * math.exp(part * math.log(self.end / self.start))
        return self.start + part * (self.end - self.start)

    @classmethod
    def for_sessions(
        cls, start: float, end: float, num: int, *, is_exponential: bool = False
    ) -> "Ramp":
        """Return a ramp just long enough for `num` expected sessions."""
        mean = (start + end) / 2
        if is_exponential and start != end:
            mean = (end - start) / math.log(end / start)
        return cls(start, end, num / mean, is_exponential)


@dataclass(frozen=True)
class RateSeries:
    """A rate that is linear between `points` (seconds, sessions per second), and repeats.

    Raises InvalidRequestError unless the seconds start at 0 and ascend, and a rate is positive.
    """

    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        seconds = [point[0] for point in self.points]
        ascends = all(before < after for before, after in zip(seconds, seconds[1:], strict=False))
        rates = [point[1] for point in self.points]
        if len(seconds) < 2 or seconds[0] != 0 or not ascends or min(rates) < 0 or not any(rates):
            raise InvalidRequestError(
                f"got a rate series at {seconds[:4]}... seconds, expected two or more lines with "
                "ascending seconds from 0 and rates of 0 or more, one of them above 0",
                param="rate_series",
            )

    @property
    def peak(self) -> float:
        return max(rate for _, rate in self.points)

    def at(self, time: float) -> float:
        seconds, rates = zip(*self.points, strict=True)
        return float(np.interp(time % seconds[-1], seconds, rates))


@dataclass(frozen=True)
class VaryingArrivals:
    """A Poisson process whose rate follows a curve, by thinning (Lewis and Shedler, 1979)."""

    curve: RateCurve

    def times(self, random: Random) -> Iterator[float]:
        time = 0.0
        while True:
            time += random.exponential(1 / self.curve.peak)
            if random.random() * self.curve.peak < self.curve.at(time):
                yield time
