"""Verdicts of comparisons agree with their intervals."""

from typing import Any

import numpy as np
import pytest

from helios_serve.benchmarks.measure import statistics
from helios_serve.benchmarks.measure.comparison import (
    DEFAULT_GATES,
    Gate,
    Side,
    check_comparable,
    compare,
    compare_rounds,
    exit_status,
    table_lines,
    usable_gates,
    value_of,
)
from helios_serve.benchmarks.measure.record import SessionRecord
from helios_serve.benchmarks.measure.result import frames_in, result_of
from helios_serve.benchmarks.measure.statistics import Estimate
from helios_serve.errors import InvalidRequestError
from tests.support.bench_records import run_of, session

GATES = [Gate.parse(text) for text in DEFAULT_GATES]


def drawn_sessions(seed: int, factor: float, num: int) -> list[SessionRecord]:
    """Return sessions with random latencies, `factor` times as long as usual."""
    random = np.random.default_rng(seed)
    records = []
    for number in range(num):
        start = float(number)
        gaps = factor * np.array([random.lognormal(0, 0.25), *random.lognormal(0, 0.15, size=5)])
        arrivals = tuple(float(at) for at in start + np.cumsum(gaps))
        records.append(session(number, intended=start, arrivals=arrivals))
    return records


def side(seed: int, *, factor: float = 1.0, num: int = 120, **fields: Any) -> Side:
    run = run_of(drawn_sessions(seed, factor, num), window=(0.0, float(num)), **fields)
    return Side(f"run {seed}", result_of(run, command="c"), run.records)


def quick_side(seed: int, *, factor: float = 1.0, num: int = 120) -> Side:
    """Return such sessions, with only the values that a comparison reads."""
    records = drawn_sessions(seed, factor, num)
    frames = frames_in(records, (0.0, float(num)))
    block = {
        "window": (0.0, float(num)),
        "player": {"buffer": 1.0},
        "metrics": {},
        "frames_per_second": frames / num,
    }
    return Side(f"run {seed}", {"helios": block}, records)


def verdicts(base: Side, new: Side) -> set[str | None]:
    return {each.verdict for each in compare(base, new, GATES) if each.gate is not None}


@pytest.fixture
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bootstrap of fewer draws, for tests of many comparisons."""
    monkeypatch.setattr(statistics, "DRAWS", 300)


@pytest.mark.usefixtures("few_draws")
def test_equal_servers_alarm_at_most_once_in_twenty() -> None:
    alarms = sum(
        "regression" in verdicts(quick_side(2 * k), quick_side(2 * k + 1)) for k in range(20)
    )
    assert alarms <= 1


@pytest.mark.usefixtures("few_draws")
def test_a_slow_down_of_15_percent_is_found() -> None:
    found = sum(
        "regression" in verdicts(quick_side(2 * k), quick_side(2 * k + 1, factor=1.15))
        for k in range(20)
    )
    assert found >= 18


def test_a_run_compared_with_itself_passes() -> None:
    own = side(0, num=300)
    compared = compare(own, own, GATES)
    assert exit_status(compared) == 0, table_lines(compared)
    assert all(each.ratio.value == 1 for each in compared)


def test_few_sessions_are_inconclusive() -> None:
    compared = compare(side(0, num=6), side(1, num=6, factor=1.05), GATES)
    assert exit_status(compared) == 3


@pytest.mark.parametrize(
    ("text", "ratio", "verdict"),
    [
        ("mean_ttfc_ms>+10%", Estimate(1.2, 1.11, 1.3), "regression"),
        ("mean_ttfc_ms>+10%", Estimate(1.2, 1.05, 1.3), "inconclusive"),
        ("mean_ttfc_ms>+10%", Estimate(1.0, 0.9, 1.09), "pass"),
        ("frames_per_second<-10%", Estimate(0.8, 0.7, 0.89), "regression"),
        ("frames_per_second<-10%", Estimate(0.8, 0.7, 0.91), "inconclusive"),
        ("frames_per_second<-10%", Estimate(1.0, 0.91, 1.1), "pass"),
        ("p99_ttfc_ms>+0%", Estimate(2.0, None, None), "inconclusive"),
    ],
)
def test_a_gate_judges_the_whole_interval(text: str, ratio: Estimate, verdict: str) -> None:
    assert Gate.parse(text).judge(ratio) == verdict


@pytest.mark.parametrize("text", ["", "p99_ttfc_ms", "ttfc>+1%", "p99_ttfc_ms>10", "x<-5%"])
def test_gates_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"expected KEY>\+N%"):
        Gate.parse(text)


def test_values_of_a_comparison_are_those_of_the_result() -> None:
    own = side(3)
    assert value_of(own, "mean_icl_ms") == own.result["mean_icl_ms"]
    assert value_of(own, "p75_icl_ms") == pytest.approx(
        np.quantile([i for r in own.sessions for i in np.diff([c.at for c in r.chunks])], 0.75)
        * 1000,
        rel=0.01,
    )


def test_rounds_are_compared_by_students_interval() -> None:
    """Ratios 1.1 and 1.3: the mean of the logarithms is half of log(1.43)."""
    pairs = [(side(k), side(k, factor=factor)) for k, factor in enumerate((1.1, 1.3))]
    found = {each.key: each for each in compare_rounds(pairs, [Gate.parse("mean_ttfc_ms>+5%")])}
    own = found["mean_ttfc_ms"]
    assert own.ratio.value == pytest.approx((1.1 * 1.3) ** 0.5)
    assert own.ratio.low is not None
    assert own.ratio.low < 1.05
    assert own.verdict == "inconclusive"


def test_results_that_would_mislead_are_refused() -> None:
    good, polled, invalid = side(0, num=5), side(1, num=5), side(2, num=5, stopped_because="x")
    polled.result["helios"]["timing"] = "poll"
    with pytest.raises(InvalidRequestError, match="timed in different ways"):
        check_comparable(good, polled)
    with pytest.raises(InvalidRequestError, match="invalid run"):
        check_comparable(good, invalid)
    check_comparable(good, good)


def test_a_gate_on_a_metric_that_a_result_lacks_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="got no mean_switch_latency_ms"):
        compare(side(0, num=5), side(1, num=5), [Gate.parse("mean_switch_latency_ms>+5%")])
    records = [session(0, outcome="completed", polled=(1.0, 2.0), ended=2.0)]
    run = run_of(records)
    polled = Side("p", result_of(run, command="c"), records)
    assert [gate.key for gate in usable_gates(polled, polled)] == [
        "mean_e2el_ms",
        "frames_per_second",
    ]
