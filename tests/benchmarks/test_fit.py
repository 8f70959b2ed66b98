"""Costs fitted to a trace: those with which the trace was simulated are found again."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from helios_serve.benchmarks.load.workload import draw_workload
from helios_serve.benchmarks.measure.result_files import json_of
from helios_serve.benchmarks.simulator.agreement import (
    Agreement,
    compare,
    completion_tau,
    table_lines,
)
from helios_serve.benchmarks.simulator.costs import DeviceCosts, PlanCosts, TaskCosts
from helios_serve.benchmarks.simulator.fit import fit_costs
from helios_serve.benchmarks.simulator.least_squares import nonnegative_least_squares
from helios_serve.benchmarks.simulator.observations import read_observations
from helios_serve.errors import InvalidRequestError
from helios_serve.options.benchmarks import LoadOptions
from tests.support.scheduling import CONFIG
from tests.support.simulated import load_of, run_load, seconds_of

TRUE = DeviceCosts(
    name="true",
    source="measured",
    origin="a test",
    plan=PlanCosts(
        overhead=0.01, stages=(0.01, 0.02, 0.03), session=0.005, linear=1e-15, attention=4e-15
    ),
    encode=TaskCosts(overhead=0.02, pixel=1e-7),
    decode=TaskCosts(overhead=0.05, pixel=2e-8),
    segment=TaskCosts(overhead=0.02, pixel=3e-8),
    sharing=0.6,
    slowdowns={"segment": {"denoise": 2.0}},
    cores={"denoise": 1.5, "decode": 0.5, "segment": 1.0},
    num_blocks=60_000,
    text_rows=10_000,
)
MIX = (
    '[{"width": 640, "height": 384}, {"width": 256, "height": 256, "task": "i2v"},'
    ' {"width": 384, "height": 640, "num_frames": 66}]'
)


def traced(path: Path, costs: DeviceCosts = TRUE) -> Path:
    """The trace of a simulated load."""
    load = LoadOptions(request_rate=1.2, num_prompts=60, random_request_config=MIX)
    run_load(draw_workload(load), costs, workers=2, trace=str(path))
    return path


def test_the_costs_of_a_trace_are_found_again(tmp_path: Path) -> None:
    """All but the coefficients that no observation tells apart, such as two overheads."""
    facts = read_observations(traced(tmp_path / "trace.json"))
    assert facts.num_blocks == TRUE.num_blocks
    found = fit_costs(facts, CONFIG, name="found", origin="a test", text_rows=10_000)
    assert found.slowdowns["denoise"]["decode"] == pytest.approx(0.6, rel=0.05)
    # Encode tasks beside the decoder are too rare to be told apart.
    assert found.slowdowns["decode"]["denoise"] == pytest.approx(0.6, rel=0.15)
    assert found.slowdowns["segment"]["denoise"] == pytest.approx(2.0, rel=0.05)
    assert found.cores == pytest.approx(TRUE.cores, rel=0.05)
    assert found.plan.linear == pytest.approx(TRUE.plan.linear, rel=0.02)
    assert found.plan.attention == pytest.approx(TRUE.plan.attention, rel=0.02)
    assert found.plan.session == pytest.approx(TRUE.plan.session, rel=0.05)
    assert found.decode.pixel == pytest.approx(TRUE.decode.pixel, rel=0.05)
    assert found.encode.pixel == pytest.approx(TRUE.encode.pixel, rel=0.05)
    assert found.segment.pixel == pytest.approx(TRUE.segment.pixel, rel=0.02)
    assert all(error.mape < 0.02 and abs(error.bias) < 0.01 for error in found.errors.values())
    file = tmp_path / "costs.json"
    file.write_bytes(json_of(msgspec.to_builtins(found)))
    assert DeviceCosts.read(file) == found


def test_the_trace_of_a_killed_server_can_be_fitted(tmp_path: Path) -> None:
    """Its last line may be cut off."""
    path = traced(tmp_path / "trace.json")
    whole = read_observations(path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-2]) + lines[-2][: len(lines[-2]) // 2])
    assert len(read_observations(path).observations) >= len(whole.observations) - 2


def test_a_trace_without_plans_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    path.write_text("[]")
    with pytest.raises(InvalidRequestError, match="no plan"):
        read_observations(path)
    path.write_text("no trace")
    with pytest.raises(InvalidRequestError, match="expected a file of"):
        read_observations(path)
    with pytest.raises(InvalidRequestError, match="expected a file of"):
        read_observations(tmp_path / "none.json")
    short = LoadOptions(num_prompts=1, num_frames=33)
    run_load(draw_workload(short), TRUE, trace=str(path))
    with pytest.raises(InvalidRequestError, match="trace a longer load"):
        fit_costs(read_observations(path), CONFIG, name="x", origin="x", text_rows=1)


def test_coefficients_are_not_negative() -> None:
    random = np.random.default_rng(0)
    rows = random.random((200, 4)) * np.array([1.0, 1e3, 1e-6, 1.0])
    truth = np.array([0.5, 0.0, 2e6, 3.0])
    assert nonnegative_least_squares(rows, rows @ truth) == pytest.approx(truth, abs=1e-6)
    wished = rows @ np.array([1.0, -1e-3, 1e6, 0.0])
    found = nonnegative_least_squares(rows, wished)
    assert (found >= 0).all()
    gradient = rows.T @ (wished - rows @ found)
    assert np.abs(gradient[found > 0]).max() <= 1e-6 * np.abs(rows.T @ wished).max()
    assert gradient[found == 0].max() <= 1e-6 * np.abs(rows.T @ wished).max()


def test_a_run_agrees_with_itself_and_not_with_a_slower_one() -> None:
    starts = [2.0 * index for index in range(20)]
    fast = run_load(load_of(starts), seconds_of(step=0.2)).run.records
    slow = run_load(load_of(starts), seconds_of(step=0.3)).run.records
    same = compare([fast, fast], fast)
    assert [each.name for each in same][:3] == ["ttfc mean", "ttfc p50", "ttfc p95"]
    assert all(each.error == 0 and each.is_met for each in same)
    assert not any(each.is_met for each in compare([fast], slow))
    assert completion_tau(fast, fast) == 1.0
    assert completion_tau(fast, slow) > 0.9
    lines = table_lines(compare([fast], slow))
    assert len(lines) == 10
    assert all(line.endswith("MISSED") for line in lines[1:])


def test_an_error_within_the_spread_of_real_runs_is_met() -> None:
    assert not Agreement("x", 1.0, 1.2, 0.1).is_met
    assert Agreement("x", 1.0, 1.2, 0.1, 0.25).is_met
