"""Results have vLLM's keys, account for every session, and say when they are invalid."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helios_serve.benchmarks.measure.load_run import ClientLoad, LoadRun
from helios_serve.benchmarks.measure.printed import printed
from helios_serve.benchmarks.measure.result import result_of
from helios_serve.benchmarks.measure.result_files import (
    ResultFiles,
    default_name,
    read_result,
    read_sessions,
)
from helios_serve.errors import InvalidRequestError, StorageError
from helios_serve.options.benchmarks import ReportOptions
from tests.support.bench_records import run_of, session

VLLM = {
    "date", "endpoint_type", "backend", "label", "model_id", "tokenizer_id", "num_prompts",
    "request_rate", "burstiness", "max_concurrency", "duration", "completed", "failed",
    "request_throughput", "request_goodput", "total_input_tokens", "total_output_tokens",
    "output_throughput", "total_token_throughput", "max_concurrent_requests",
    "mean_ttft_ms", "median_ttft_ms", "std_ttft_ms", "p99_ttft_ms", "mean_itl_ms", "p99_itl_ms",
    "mean_e2el_ms", "p99_e2el_ms",
}  # fmt: skip
SGLANG = {
    "completed_requests", "failed_requests", "throughput_qps", "latency_mean", "latency_median",
    "latency_p99", "slo_attainment_rate", "slo_met_success",
}  # fmt: skip


def mixed_run(**report: Any) -> LoadRun:
    """Two completed sessions, one refused, one timed out, one failed and one that left."""
    return run_of(
        [
            session(0, arrivals=(1.0, 2.0, 3.0)),
            session(1, intended=1.0, arrivals=(4.0, 5.0)),
            session(2, intended=2.0, outcome="refused", code="queue_full", error="full"),
            session(3, intended=3.0, outcome="timed_out", code="timeout"),
            session(4, intended=4.0, outcome="failed", code="generation_failed"),
            session(5, intended=5.0, arrivals=(6.0,), outcome="cancelled", code="left"),
        ],
        report=ReportOptions(**report),
    )


def test_a_result_has_the_keys_of_vllm_and_sglang() -> None:
    result = result_of(mixed_run(save_detailed=True), command="c")
    assert result.keys() >= VLLM | SGLANG | {"ttfts", "itls", "errors", "start_times", "latencies"}
    assert len(result["ttfts"]) == 6
    assert json.loads(json.dumps(result, allow_nan=False)) is not None


def test_rates_and_outcomes() -> None:
    """Good sessions are counted among all offered ones: refusing does not improve the share."""
    result = result_of(mixed_run(goodput=("ttfc:2000",)), command="c")
    block = result["helios"]
    assert result["duration"] == 6.0
    assert result["completed"] == 2
    assert result["failed"] == 3
    assert result["request_throughput"] == pytest.approx(2 / 6)
    assert result["request_goodput"] == pytest.approx(1 / 6)
    assert block["offered"] == 6
    assert block["refused"] == {"queue_full": 1}
    assert (block["timed_out"], block["cancelled"]) == (1, 1)
    assert block["failures"] == {"generation_failed": 1}
    assert block["slo_attainment"]["value"] == pytest.approx(1 / 6)
    assert block["valid"], block["invalid_because"]


def test_metrics_in_milliseconds() -> None:
    """First chunks after 1, 3 and 1 s; the session that left counts for what it was given."""
    result = result_of(mixed_run(), command="c")
    assert result["mean_ttfc_ms"] == pytest.approx(5000 / 3)
    assert result["median_ttft_ms"] == result["median_ttfc_ms"] == 1000
    assert result["mean_e2el_ms"] == pytest.approx(3500)
    assert result["latency_mean"] == pytest.approx(3.5)
    assert result["mean_icl_ms"] == 1000
    assert result["helios"]["metrics"]["icl"]["n"] == 3
    assert result["helios"]["by_chunk"].keys() == {"0", "1-2"}


def test_steady_throughput_counts_chunks_by_their_arrival_in_the_window() -> None:
    run = mixed_run()._replace(window=(1.5, 4.5))
    block = result_of(run, command="c")["helios"]
    assert block["frames"] == 3 * 24
    assert block["frames_per_second"] == pytest.approx(24)


def test_groups_of_tenants_and_shapes() -> None:
    run = mixed_run()
    run.records[0].tenant = "acme"
    run.records[1].shape = "64x64, 33 frames"
    block = result_of(run, command="c")["helios"]
    assert block["by_tenant"]["acme"]["completed"] == 1
    assert block["by_shape"]["64x64, 33 frames"]["metrics"]["ttfc"]["mean"] == 3000


def test_the_price_of_a_minute_of_video() -> None:
    """Two GPUs for ten seconds at 3.6 an hour, for six chunks of a second."""
    result = result_of(mixed_run(num_gpus=2, gpu_hour_price=3.6), command="c")
    cost = result["helios"]["cost"]
    assert cost["total"] == pytest.approx(0.02)
    assert cost["per_video_minute"] == pytest.approx(0.02 / (6 / 60))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda run: run._replace(client=ClientLoad([0.5], 0.1, 100.0, None)), "event loop"),
        (lambda run: run._replace(stopped_because="interrupted by the user"), "interrupted"),
        (lambda run: run._replace(records=run.records[2:3]), "no session was completed"),
    ],
)
def test_a_run_that_is_not_to_be_used_says_why(
    change: Callable[[LoadRun], LoadRun], reason: str
) -> None:
    result = result_of(change(mixed_run()), command="c")
    assert not result["helios"]["valid"]
    assert reason in result["helios"]["invalid_because"][0]
    assert "INVALID RUN" in printed(result, ["ttfc"])


def test_a_session_without_an_end_makes_a_run_invalid() -> None:
    run = mixed_run()
    run.records[0].outcome = None
    reasons = result_of(run, command="c")["helios"]["invalid_because"]
    assert reasons == ["1 of 6 sessions have no end"]


def test_a_client_that_sends_late_makes_a_run_invalid_but_its_own_limit_does_not() -> None:
    run = mixed_run()
    for record in run.records:
        record.sent = record.intended + 1.0
    assert "sending" in result_of(run, command="c")["helios"]["invalid_because"][0]
    for record in run.records:
        record.released = record.intended + 1.0
    assert result_of(run, command="c")["helios"]["valid"]


def test_the_printed_result_shows_intervals_and_missing_bounds() -> None:
    text = printed(result_of(mixed_run(), command="c"), ["ttfc", "icl"])
    assert "6 offered = 2 completed + 1 failed + 1 refused + 1 timed out + 1 cancelled" in text
    assert "Time to first chunk (ms), n = 3" in text
    assert "an upper bound needs about 299 values" in text


def test_files_of_a_result(tmp_path: Path) -> None:
    run = mixed_run(result_dir=str(tmp_path / "new"))
    files = ResultFiles.of(run.report, "name.json")
    assert files is not None
    result = result_of(run, command="c")
    files.write(result, run.workload.requests, run.records)
    assert {path.name for path in (tmp_path / "new").iterdir()} == {
        "name.json",
        "name.trace.jsonl",
        "name.sessions.jsonl",
        "name.sessions.csv",
    }
    assert read_result(files.path)["helios"]["workload"]["file"] == "name.trace.jsonl"
    assert read_sessions(files.path) == run.records
    rows = list(csv.DictReader(files.table.read_text().splitlines()))
    assert (rows[1]["ttfc_ms"], rows[2]["code"]) == ("3000.000", "queue_full")


def test_a_result_that_cannot_be_written_is_kept_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder is lost while the load runs, as with a disk that is full or removed."""
    (tmp_path / "other").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "other"))
    files = ResultFiles.of(ReportOptions(result_dir=str(tmp_path / "results")), "a.json")
    assert files is not None
    (tmp_path / "results").rmdir()
    (tmp_path / "results").write_text("in its place")
    run = run_of([session(arrivals=(1.0, 2.0))])
    with pytest.raises(StorageError, match="cannot write .*a.json.*; the result is in ") as raised:
        files.write(result_of(run, command="c"), run.workload.requests, run.records)
    (folder,) = (tmp_path / "other").iterdir()
    assert str(raised.value).endswith(str(folder))
    kept = folder / "a.json"
    assert read_result(kept)["completed"] == 1
    assert read_sessions(kept) == run.records


def test_results_are_written_only_when_asked_for() -> None:
    assert ResultFiles.of(ReportOptions(), "name.json") is None
    assert default_name("helios", "inf qps", "a/b", "d") == "helios-inf_qps-a_b-d.json"


def test_a_folder_that_cannot_be_written_is_an_error_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        ResultFiles.of(ReportOptions(result_dir=str(tmp_path / "file")), "name.json")


@pytest.mark.parametrize(
    ("text", "reason"), [("{", "truncated"), ("{}", "without a helios block"), (None, "readable")]
)
def test_files_that_are_no_results_are_refused(
    tmp_path: Path, text: str | None, reason: str
) -> None:
    path = tmp_path / "result.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InvalidRequestError, match=reason):
        read_result(path)
