"""How fast stages are, as measured."""

import math
from typing import Literal

RATE_SECONDS = 5.0
"""Seconds of work in which the weight of what was measured before falls by a factor of e."""
RATE_MEMORY = 0.9
"""Factor by which a measurement reduces that weight at most, so that one long job does not decide
by what rate the next one is charged."""
MIN_SPREAD = 0.02
"""Spread of the costs of plans from which on a fixed time can be told from one that grows: the
mean cost times the mean inverse cost, less 1. It is 0 if all costs are equal."""
MAX_FIXED = 0.95
"""Part of the time of the average plan that is taken to be fixed, at most."""


RECENT_SECONDS = 10.0
"""Seconds in which the weight of what a device did before falls by a factor of e. Other load on its
machine comes and goes within seconds; what a few jobs took by chance evens out."""


def fading(seconds: float) -> float:
    """The factor by which a job of `seconds` reduces the weight of those before it."""
    return max(RATE_MEMORY, math.exp(-seconds / RATE_SECONDS))


class Rate:
    """Work per second as measured; 0 before the first measurement.

    Work and time are summed up, so that a short measurement has little weight. Both sums fade with
    the time that is added. The first measurement counts until there is a second one: it is slow
    where libraries are loaded and kernels are chosen or compiled.
    """

    def __init__(self) -> None:
        self.value = 0.0
        self._done = self._spent = 0.0

    def measure(self, work: float, seconds: float) -> None:
        """Add `work` that took `seconds`; nothing if that was not measured."""
        if work and seconds > 0:
            is_first, fade = not self.value, fading(seconds)
            done, spent = fade * self._done + work, fade * self._spent + seconds
            self.value = done / spent
            if not is_first:
                self._done, self._spent = done, spent

    def seconds(self, work: float) -> float:
        """Seconds that `work` takes; 0 before the first measurement."""
        return work / self.value if self.value else 0.0


class PlanTime:
    """Fits `fixed` + `slope` * cost to the seconds of a worker's plans.

    `fixed` is in seconds a plan: to launch kernels, to pass messages. `slope` is in seconds a FLOP.
    Both are 0 before the first measurement. Measurements fade, and the first one is replaced, as
    those of a `Rate`.

    The fit is by least squares, each plan weighted by its inverse cost since longer plans vary
    more. Together the plans that were measured are given the time that they took. While all of them
    cost about the same, the fixed time stays what it was.
    """

    def __init__(self) -> None:
        self.fixed = self.slope = 0.0
        self._plans = self._seconds = self._costs = 0.0
        self._inverse = self._inverse_seconds = 0.0

    def seconds(self, cost: float, plans: float = 1.0) -> float:
        """Seconds of `plans` plans of `cost` FLOPs in all; 0 before the first measurement."""
        return self.fixed * plans + self.slope * cost

    def measure(self, cost: float, seconds: float) -> None:
        """Add a plan of `cost` FLOPs that took `seconds`; nothing if that was not measured."""
        if not cost or seconds <= 0:
            return
        if not self.slope:
            self.slope = seconds / cost
            return
        fade = fading(seconds)
        self._plans = fade * self._plans + 1
        self._seconds = fade * self._seconds + seconds
        self._costs = fade * self._costs + cost
        self._inverse = fade * self._inverse + 1 / cost
        self._inverse_seconds = fade * self._inverse_seconds + seconds / cost
        self._fit()

    def _fit(self) -> None:
        spread = self._inverse * self._costs - self._plans**2
        if spread > MIN_SPREAD * self._plans**2:
            self.fixed = (
                self._inverse_seconds * self._costs - self._seconds * self._plans
            ) / spread
        self.fixed = min(max(0.0, self.fixed), MAX_FIXED * self._seconds / self._plans)
        self.slope = (self._seconds - self._plans * self.fixed) / self._costs


class RecentWork:
    """What a device has done lately, and the `seconds` in which it did that.

    `plans` are counted, `flops` are those of denoise steps, `encoded` and `decoded` are pixels. All
    fade with the seconds. The first job of a stage does not count, as with a `Rate`.
    """

    def __init__(self) -> None:
        self.seconds = self.plans = self.flops = self.encoded = self.decoded = 0.0
        self._stages: set[str] = set()

    def add(
        self, stage: Literal["encode", "denoise", "decode"], work: float, seconds: float
    ) -> None:
        """Add a job of a stage, in FLOPs or pixels, that took `seconds` of the device."""
        if stage not in self._stages:
            self._stages.add(stage)
            return
        self._fade(math.exp(-seconds / RECENT_SECONDS))
        self.seconds += seconds
        match stage:
            case "encode":
                self.encoded += work
            case "denoise":
                self.plans += 1
                self.flops += work
            case "decode":
                self.decoded += work

    def _fade(self, factor: float) -> None:
        self.seconds *= factor
        self.plans *= factor
        self.flops *= factor
        self.encoded *= factor
        self.decoded *= factor
