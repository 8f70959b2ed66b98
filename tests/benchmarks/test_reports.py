"""Reports are one file with every plot, whatever a run lacks."""

import re
from typing import Any

import pytest

from helios_serve.benchmarks.measure.load_run import LoadRun
from helios_serve.benchmarks.measure.result import result_of
from helios_serve.benchmarks.measure.server_metrics import GaugeSample
from helios_serve.benchmarks.reports.run_report import PANELS, run_report
from helios_serve.options.benchmarks import ReportOptions
from tests.support.bench_records import run_of, session

GAUGES = {
    'helios:history_blocks_used{model="m"}': 5.0,
    'helios:history_blocks_total{model="m"}': 9.0,
}


def whole_run(**fields: Any) -> LoadRun:
    records = [
        session(0, arrivals=(1.0, 2.0, 5.0), tenant="<a>"),
        session(1, intended=1.0, arrivals=(2.0, 3.0), tenant="b"),
        session(2, intended=2.0, outcome="refused", code="queue_full"),
        session(3, intended=2.0, arrivals=(3.0,), outcome="failed", code="broken"),
    ]
    report = ReportOptions(goodput=("ttfc:2000",), label="<label>")
    samples = [GaugeSample(float(at), GAUGES) for at in range(5)]
    return run_of(records, report=report, samples=samples, **fields)


def test_a_report_has_all_plots_with_units_and_loads_nothing() -> None:
    run = whole_run()
    text = run_report(result_of(run, command="helios-serve bench serve"), run)
    assert text.count("<svg") == len(PANELS) == 9
    assert "Valid run" in text
    for name in ("time to first chunk (s)", "start-up buffer (s)", "history blocks in use (%)"):
        assert name in text
    assert "<script" not in text
    assert not re.search(r"(src|href)=\"(?!#)", text.replace("xlink:href", "href"))
    assert "<label>" not in text
    assert "&lt;label&gt;" in text


@pytest.mark.parametrize(
    "records",
    [
        [session(0, outcome="completed", polled=(1.0, 2.0), ended=2.0)],
        [session(0, outcome="refused", code="queue_full")],
        [session(0, arrivals=(1.0,))],
    ],
)
def test_a_run_without_chunks_has_a_report(records: list[Any]) -> None:
    run = run_of(records)
    text = run_report(result_of(run, command="c"), run)
    assert "<svg" in text


def test_an_invalid_run_says_so_in_its_report() -> None:
    run = whole_run(stopped_because="interrupted by the user")
    text = run_report(result_of(run, command="c"), run)
    assert "Invalid run, do not use its numbers: interrupted by the user" in text
