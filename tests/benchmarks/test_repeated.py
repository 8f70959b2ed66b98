"""Repeated runs: intervals over runs, files of each, and their comparison."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helios_serve.benchmarks.measure.repeated import over_runs, repeated_result
from helios_serve.benchmarks.measure.result import result_of
from helios_serve.entrypoints.cli.main import main
from tests.benchmarks.test_bench_serve import null_server
from tests.support.bench_records import run_of, session

pytestmark = pytest.mark.usefixtures("patience")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with null_server() as (_, found):
        yield found


def run_with(first_chunk: float, *, stopped: str | None = None) -> dict[str, Any]:
    records = [session(number, arrivals=(first_chunk, 9.0)) for number in range(3)]
    return result_of(run_of(records, stopped_because=stopped), command="c")


def test_a_value_over_runs_is_the_mean_of_theirs_with_students_interval() -> None:
    """Of 1, 2 and 3 s: the mean is 2 s, and the bounds are 2.92 / sqrt(3) s from it."""
    found = over_runs([run_with(seconds) for seconds in (1.0, 2.0, 3.0)])["p99_ttfc_ms"]
    assert found.value == pytest.approx(2000)
    assert found.low == pytest.approx(2000 - 1000 * 2.92 / 3**0.5, abs=0.1)
    assert found.high == pytest.approx(2000 + 1000 * 2.92 / 3**0.5, abs=0.1)


def test_one_invalid_run_makes_all_invalid() -> None:
    runs = [run_with(1.0), run_with(1.0, stopped="interrupted")]
    found = repeated_result(runs, ["a-1.json", "a-2.json"])
    assert found["helios"]["valid"] is False
    assert found["helios"]["invalid_because"] == ["interrupted"]
    assert [run["valid"] for run in found["helios"]["runs"]] == [True, False]
    assert found["completed"] == 6


def test_runs_are_written_and_compared_run_by_run(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load = ("--base-url", url, "--request-rate", "40", "--num-prompts", "6", "--num-frames", "66")
    quick = ("--no-self-check", "--num-warmups", "0", "--disable-tqdm", "--num-runs", "3")
    for name in ("base", "new"):
        files = ("--result-dir", str(tmp_path), "--result-filename", f"{name}.json")
        assert main(["bench", "serve", *load, *quick, *files]) == 0
    assert "3 runs, with intervals over the runs" in capsys.readouterr().out
    written = json.loads((tmp_path / "base.json").read_text())
    runs = written["helios"]["runs"]
    assert [run["file"] for run in runs] == ["base-1.json", "base-2.json", "base-3.json"]
    assert [run["seed"] for run in runs] == [0, 1, 2]
    values = [json.loads((tmp_path / run["file"]).read_text()) for run in runs]
    assert [value["run_number"] for value in values] == [0, 1, 2]
    assert written["mean_e2el_ms"] == pytest.approx(
        sum(value["mean_e2el_ms"] for value in values) / 3
    )
    compared = [str(tmp_path / f"{name}.json") for name in ("base", "new")]
    gate = ("--fail-on", "mean_ttfc_ms>+100000%")
    assert main(["bench", "compare", *compared, *gate]) == 0
    assert "no regression" in capsys.readouterr().out
    # Results of several runs and of one cannot be paired.
    assert main(["bench", "compare", compared[0], str(tmp_path / "new-1.json"), *gate]) == 2
    assert "got 3 and 1 runs" in capsys.readouterr().err


def test_a_sweep_numbers_the_runs_of_a_load(url: str, tmp_path: Path) -> None:
    """`vllm bench sweep plot` groups by these keys."""
    loads = tmp_path / "loads.json"
    loads.write_text('[{"request_rate": 40}, {"request_rate": 80}]')
    flags = ("--base-url", url, "--bench-params", str(loads), "--num-prompts", "3")
    quick = ("--no-self-check", "--num-warmups", "0", "--disable-tqdm", "--num-runs", "2")
    assert main(["bench", "sweep", *flags, *quick, "--result-dir", str(tmp_path / "sweep")]) == 0
    found = json.loads((tmp_path / "sweep/summary.json").read_text())
    assert [(run["request_rate"], run["run_number"]) for run in found] == [
        (40, 0),
        (40, 1),
        (80, 0),
        (80, 1),
    ]
    for run in found:
        assert {"median_ttft_ms", "p99_ttfc_ms", "request_throughput"} <= run.keys()


def test_a_search_has_runs_of_its_own(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "sweep", "--base-url", url, "--search", "users", "--num-runs", "2"]) == 2
    assert "expected --max-runs" in capsys.readouterr().err


def test_a_scaled_bound_is_a_multiple_of_a_session_alone(url: str, tmp_path: Path) -> None:
    """Each shape has its own; the trace keeps the bounds, so that they can be replayed."""
    shapes = '[{"num_frames": 33}, {"num_frames": 99}]'
    flags = ("--base-url", url, "--request-rate", "40", "--num-prompts", "12", "--slo-scale", "3")
    quick = ("--no-self-check", "--disable-tqdm", "--random-request-config", shapes)
    files = ("--result-dir", str(tmp_path), "--result-filename", "a.json")
    assert main(["bench", "serve", *flags, *quick, *files]) == 0
    block = json.loads((tmp_path / "a.json").read_text())["helios"]
    alone = block["alone_e2el_ms"]
    assert alone.keys() == {"default size, 33 frames", "default size, 99 frames"}
    lines = [json.loads(line) for line in (tmp_path / "a.trace.jsonl").read_text().splitlines()]
    for line in lines:
        expected = 3 * alone[f"default size, {line['num_frames']} frames"]
        assert line["slo_ms"] == pytest.approx(expected)
    sessions = (tmp_path / "a.sessions.jsonl").read_text().splitlines()
    good = sum(
        1000 * (found["chunks"][-1][0] - found["intended"]) <= found["slo_ms"]
        for found in map(json.loads, sessions)
    )
    assert block["good"] == good
