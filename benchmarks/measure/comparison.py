"""Compares results: intervals of ratios, and gates on them."""

import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from helios_serve.benchmarks.measure.metrics import session_metrics
from helios_serve.benchmarks.measure.record import SessionRecord
from helios_serve.benchmarks.measure.statistics import (
    DRAWS,
    Estimate,
    bounds_of,
    runs_interval,
    session_weights,
    weighted_quantiles,
)
from helios_serve.benchmarks.measure.summary import METRICS
from helios_serve.errors import InvalidRequestError

Verdict = Literal["pass", "regression", "inconclusive"]
Draws = NDArray[np.float64]
DEFAULT_GATES = (
    "mean_ttfc_ms>+5%",
    "mean_icl_ms>+5%",
    "mean_e2el_ms>+5%",
    "frames_per_second<-5%",
)
SHOWN = (
    *("ttfc", "icl", "e2el", "needed_buffer", "stall"),
    *("switch_latency", "switch_playback", "chunk_rtf"),
)
"""Metrics that are compared without a gate as well."""
GATE = re.compile(r"(\w+)\s*([<>])\s*([+-]?\d+(?:\.\d+)?)%")
KEY = re.compile(rf"(mean|median|p\d+(?:\.\d+)?)_({'|'.join(METRICS)})(_ms)?")


class Gate(NamedTuple):
    """Fails if the new value of `key` is above (or below) `limit` times the base's."""

    key: str
    is_upper: bool
    limit: float

    @classmethod
    def parse(cls, text: str) -> "Gate":
        """Parse KEY>+N% or KEY<-N%. Raises InvalidRequestError."""
        match = GATE.fullmatch(text.strip())
        if match is None or (KEY.fullmatch(match[1]) is None and match[1] not in RATES):
            raise InvalidRequestError(
                f"got --fail-on {text!r}, expected KEY>+N% or KEY<-N%, such as p99_ttfc_ms>+10%, "
                f"with a key of mean, median or a percentile of a metric, or of "
                f"{', '.join(RATES)}",
                param="fail_on",
            )
        return cls(match[1], match[2] == ">", 1 + float(match[3]) / 100)

    def judge(self, ratio: Estimate) -> Verdict:
        """Return the verdict: undecided unless the whole interval is on one side of the limit."""
        if ratio.low is None or ratio.high is None:
            return "inconclusive"
        worst, best = (ratio.low, ratio.high) if self.is_upper else (ratio.high, ratio.low)
        if (worst > self.limit) if self.is_upper else (worst < self.limit):
            return "regression"
        is_within = (best <= self.limit) if self.is_upper else (best >= self.limit)
        return "pass" if is_within else "inconclusive"


class Compared(NamedTuple):
    """A key of two results, and the ratio of the new one to the base. `verdict` is of its gate."""

    key: str
    base: float
    new: float
    ratio: Estimate
    gate: Gate | None
    verdict: Verdict | None


class Side(NamedTuple):
    """A result with its sessions."""

    name: str
    result: dict[str, Any]
    sessions: list[SessionRecord]

    @property
    def counted(self) -> list[SessionRecord]:
        return [record for record in self.sessions if record.is_counted]


def check_comparable(base: Side, new: Side) -> None:
    """Raise InvalidRequestError for results whose comparison would mislead."""
    for side in (base, new):
        if not side.result["helios"]["valid"]:
            reasons = "; ".join(side.result["helios"]["invalid_because"])
            raise InvalidRequestError(
                f"{side.name}: got an invalid run ({reasons}), expected a valid one",
                param="results",
            )
    for key in ("timing", "poll_interval"):
        one, other = (side.result["helios"][key] for side in (base, new))
        if one != other:
            raise InvalidRequestError(
                f"got results with {key} {one} and {other}, expected the same: latencies that are "
                "timed in different ways cannot be compared",
                param="results",
            )


def compare(base: Side, new: Side, gates: Sequence[Gate], seed: int = 0) -> list[Compared]:
    """Compare two runs. Bounds come from a bootstrap that draws sessions of both.

    Sessions of one run share the state of the machine. If runs differ by more than their sessions,
    compare several pairs of runs with `compare_rounds`.
    """
    found = []
    for key, gate in keys_of(base, new, gates):
        values = [value_of(side, key) for side in (base, new)]
        draws = [draws_of(side, key, seed + index) for index, side in enumerate((base, new))]
        if None in values or not values[0]:
            continue
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = draws[1] / draws[0]
        one, other = (float(value or 0.0) for value in values)
        ratio = bounds_of(other / one, ratios[np.isfinite(ratios)])
        found.append(Compared(key, one, other, ratio, gate, gate and gate.judge(ratio)))
    return found


def compare_rounds(pairs: Sequence[tuple[Side, Side]], gates: Sequence[Gate]) -> list[Compared]:
    """Compare rounds of a run of each side: Student's interval of the mean ratio, on a log scale.

    Two rounds or more have an interval.
    """
    found = []
    for key, gate in keys_of(*pairs[0], gates):
        rows = [(value_of(base, key), value_of(new, key)) for base, new in pairs]
        values = [(one, other) for one, other in rows if one and other]
        if len(values) < len(rows):
            continue
        logs = runs_interval([float(np.log(other / one)) for one, other in values])
        ratio = Estimate(
            float(np.exp(logs.value)),
            None if logs.low is None else float(np.exp(logs.low)),
            None if logs.high is None else float(np.exp(logs.high)),
        )
        base_mean, new_mean = (float(np.mean(side)) for side in zip(*values, strict=True))
        found.append(Compared(key, base_mean, new_mean, ratio, gate, gate and gate.judge(ratio)))
    return found


def keys_of(base: Side, new: Side, gates: Sequence[Gate]) -> list[tuple[str, Gate | None]]:
    """Return the gated keys first, then the others that both results have.

    Raises InvalidRequestError for a gate on a metric that one of them lacks.
    """
    gated = [(gate.key, gate) for gate in gates]
    for key, _ in gated:
        for side in (base, new):
            if value_of(side, key) is None:
                raise InvalidRequestError(
                    f"{side.name}: got no {key}, which --fail-on needs",
                    param="fail_on",
                )
    both = base.result["helios"]["metrics"].keys() & new.result["helios"]["metrics"].keys()
    rest = [
        f"{statistic}_{name}{'_ms' if metric.unit == 'ms' else ''}"
        for name, metric in METRICS.items()
        if name in both and name in SHOWN
        for statistic in ("mean", "p90")
    ]
    known = {gate.key for gate in gates}
    return gated + [(key, None) for key in (*rest, *RATES) if key not in known]


def usable_gates(base: Side, new: Side) -> list[Gate]:
    """Return the default gates on what both results have."""
    gates = map(Gate.parse, DEFAULT_GATES)
    return [gate for gate in gates if value_of(base, gate.key) and value_of(new, gate.key)]


def frames_of(record: SessionRecord, side: Side) -> float:
    start, end = side.result["helios"]["window"]
    return sum(chunk.frames for chunk in record.deliveries if start < chunk.at <= end)


RATES: dict[str, Callable[[SessionRecord, Side], float]] = {
    "frames_per_second": frames_of,
}
"""Rates, by name, each with the function that returns a session's contribution."""


def value_of(side: Side, key: str) -> float | None:
    """Return a value of a result."""
    found = side.result["helios"] if key == "frames_per_second" else side.result
    value = found.get(key)
    if value is None and (match := KEY.fullmatch(key)):
        parts = parts_of(side, match[2])
        if not parts:
            return None
        return statistic_of(match[1], parts, np.ones((1, len(parts)), int))[0]
    return None if value is None else float(value)


def draws_of(side: Side, key: str, seed: int) -> Draws:
    """Return bootstrap draws of a value: each draws the run's sessions with replacement."""
    if key in RATES:
        own = np.array([RATES[key](record, side) for record in side.sessions])
        return np.asarray(session_weights(len(own), seed) @ own / length_of(side), float)
    match = KEY.fullmatch(key)
    assert match is not None, "checked by Gate.parse"
    parts = parts_of(side, match[2])
    if not parts:
        return np.full(DRAWS, np.nan)
    return np.array(statistic_of(match[1], parts, session_weights(len(parts), seed)))


def length_of(side: Side) -> float:
    start, end = side.result["helios"]["window"]
    return max(float(end - start), 1e-9)


def parts_of(side: Side, name: str) -> list[list[float]]:
    """Return the values of a metric by session."""
    metric = METRICS[name]
    player = side.result["helios"]["player"]
    buffer = player["buffer"] if player else 0.0
    factor = 1000 if metric.unit == "ms" else 1
    found = (
        [
            factor * value
            for value in metric.values(session_metrics(record, buffer))
            if value is not None
        ]
        for record in side.counted
        if record.is_served
    )
    return [values for values in found if values]


def statistic_of(
    statistic: str, parts: Sequence[Sequence[float]], weights: NDArray[Any]
) -> list[float]:
    """Return a mean or a percentile for each row of weights of the sessions."""
    if statistic == "mean":
        sums, counts = np.array([sum(part) for part in parts]), np.array([len(p) for p in parts])
        return [float(value) for value in weights @ sums / (weights @ counts)]
    share = 0.5 if statistic == "median" else float(statistic[1:]) / 100
    flat = np.concatenate([np.asarray(part) for part in parts])
    owners = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    order = np.argsort(flat)
    ordered, owners = flat[order], owners[order]
    found = weighted_quantiles(ordered, owners, weights, [share])
    return [float(value) for value in found[:, 0]]


def exit_status(compared: Sequence[Compared]) -> int:
    """Return 1 for a regression, 3 if a gate is undecided, else 0."""
    verdicts = {each.verdict for each in compared}
    return 1 if "regression" in verdicts else 3 if "inconclusive" in verdicts else 0


def table_lines(compared: Sequence[Compared]) -> list[str]:
    """Return the comparison as a printed table."""
    rows = [("KEY", "BASE", "NEW", "RATIO", "90% INTERVAL", "GATE", "VERDICT")]
    for each in compared:
        interval = "too few values"
        if each.ratio.low is not None and each.ratio.high is not None:
            interval = f"{each.ratio.low:.3f} to {each.ratio.high:.3f}"
        gate = ""
        if each.gate is not None:
            sign = ">" if each.gate.is_upper else "<"
            gate = f"{sign} {100 * (each.gate.limit - 1):+g}%"
        rows.append(
            (
                each.key,
                f"{each.base:.3f}",
                f"{each.new:.3f}",
                f"{each.ratio.value:.3f}",
                interval,
                gate,
                each.verdict or "",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
