"""`helios-serve bench` compare, sweep and trace, in this process."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from helios_serve.benchmarks.load.trace_file import read_trace
from helios_serve.benchmarks.measure.result import result_of
from helios_serve.benchmarks.measure.result_files import ResultFiles
from helios_serve.entrypoints.cli.main import main
from helios_serve.options.sampling import PromptSwitch, SamplingParams
from helios_serve.store.jobs import JobStore
from helios_serve.video_request import VideoRequest
from tests.benchmarks.test_bench_serve import null_server
from tests.support.bench_records import run_of, session

pytestmark = pytest.mark.usefixtures("patience")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with null_server() as (_, found):
        yield found


def write_result(path: Path, factor: float, *, stopped: str | None = None) -> str:
    """Write a result of 40 sessions whose latencies are nearly equal."""
    records = [
        session(
            number,
            intended=float(number),
            arrivals=tuple(
                number + factor * (1 + 0.01 * (number % 5)) * step for step in (1, 2, 3)
            ),
        )
        for number in range(40)
    ]
    run = run_of(records, window=(0.0, 40.0), stopped_because=stopped)
    ResultFiles(path).write(result_of(run, command="c"), run.workload.requests, records)
    return str(path)


@pytest.mark.parametrize(("factor", "status"), [(1.0, 0), (1.15, 1), (1.05, 3)])
def test_compare_ends_with_its_verdict(
    tmp_path: Path, factor: float, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    base = write_result(tmp_path / "base.json", 1.0)
    new = write_result(tmp_path / "new.json", factor)
    page = tmp_path / "compare.html"
    gates = ("--fail-on", "mean_ttfc_ms>+5%", "--report", str(page))
    assert main(["bench", "compare", base, new, *gates]) == status
    said = capsys.readouterr().out
    assert {0: "no regression", 1: "REGRESSION", 3: "INCONCLUSIVE"}[status] in said
    assert "note: the results come from different workloads" not in said
    assert "<svg" in page.read_text()


@pytest.mark.parametrize(
    ("results", "message"),
    [
        (["base.json"], "got 1 results"),
        (["base.json", "invalid.json"], "invalid run (stopped)"),
        (["base.json", "nowhere.json"], "expected a readable result"),
        (["base.json", "alone.json"], "expected it in the same folder"),
    ],
)
def test_results_that_cannot_be_compared(
    tmp_path: Path, results: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_result(tmp_path / "base.json", 1.0)
    write_result(tmp_path / "invalid.json", 1.0, stopped="stopped")
    (tmp_path / "alone.json").write_text('{"helios": {}}')
    assert main(["bench", "compare", *(str(tmp_path / name) for name in results)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_servers_are_compared_in_turns(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    servers = ("--base-url", url, "--new-url", url, "--alternate", "2", "--no-self-check")
    load = ("--num-prompts", "5", "--result-dir", str(tmp_path), "--disable-tqdm")
    assert main(["bench", "compare", *servers, *load]) in (0, 1, 3)
    said = capsys.readouterr().out
    order = [line.partition(", ")[2] for line in said.splitlines() if line.startswith("round")]
    assert order == ["base", "new", "new", "base"]
    assert {path.name for path in tmp_path.glob("*-?.json")} == {
        f"{name}-{number}.json" for name in ("base", "new") for number in (1, 2)
    }


def test_a_search_finds_what_a_server_carries(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The null server carries every load: the search ends at its limit."""
    search = ("--search", "users", "--search-limit", "3", "--target", "0.6", "--num-prompts", "6")
    common = ("--base-url", url, "--no-self-check", "--disable-tqdm", "--num-frames", "33")
    files = ("--result-dir", str(tmp_path), "--report", str(tmp_path / "sweep.html"))
    assert main(["bench", "sweep", *common, *search, *files]) == 0
    assert "capacity: 3 users at 0.6 good" in capsys.readouterr().out
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [each["max_concurrency"] for each in summary] == [1, 2, 3]
    assert (tmp_path / "sweep.html").read_text().count("<svg") == 2
    assert (tmp_path / "003.sessions.jsonl").exists()


def test_a_search_says_that_nothing_was_carried(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--search", "users", "--goodput", "ttfc:0", "--num-prompts", "5")
    common = ("--base-url", url, "--no-self-check", "--disable-tqdm")
    assert main(["bench", "sweep", *common, *flags, "--result-dir", str(tmp_path)]) == 1
    assert "capacity: below 1 users" in capsys.readouterr().out


def test_a_grid_runs_each_load(url: str, tmp_path: Path) -> None:
    grid = tmp_path / "grid.json"
    grid.write_text('[{"users": 1}, {"request_rate": 50.0}]')
    common = ("--base-url", url, "--no-self-check", "--disable-tqdm", "--num-prompts", "4")
    folder = ("--result-dir", str(tmp_path / "out"))
    assert main(["bench", "sweep", *common, "--bench-params", str(grid), *folder]) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [each["helios"]["loop"] for each in summary] == ["closed", "open"]
    assert summary[1]["request_rate"] == 50


@pytest.mark.parametrize(
    ("text", "message"),
    [('[{"speed": 1}]', "unknown option 'speed'"), ("{", "grid.json"), (None, "readable")],
)
def test_a_broken_grid_is_one_line(
    tmp_path: Path, text: str | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = tmp_path / "grid.json"
    if text is not None:
        grid.write_text(text)
    assert main(["bench", "sweep", "--bench-params", str(grid)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_sweep_needs_a_grid_or_a_search(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "sweep"]) == 2
    assert "expected one of them" in capsys.readouterr().err


def test_the_jobs_of_a_server_are_exported_without_prompts(tmp_path: Path) -> None:
    times = iter([100.0, 101.5])
    store = JobStore(tmp_path / "jobs.sqlite3", clock=lambda: next(times))
    params = SamplingParams(
        width=64, height=64, num_frames=99, switches=(PromptSwitch(2, "a secret storm"),)
    )
    for number, tenant in enumerate(("acme", "beta")):
        request = VideoRequest(
            request_id=f"v{number}", prompt="a secret dog", params=params, tenant=tenant
        )
        store.add(request, num_chunks=3)
    store.close()
    output = tmp_path / "trace.jsonl"
    export = ["bench", "trace", "export", "--data-dir", str(tmp_path), "--output", str(output)]
    assert main(export) == 0
    first, second = read_trace(output)
    assert "secret" not in output.read_text()
    assert (first.timestamp, second.timestamp) == (0, 1500)
    assert (first.prompt, first.num_frames, first.tenant) == ("word word word", 99, "acme")
    assert first.switches == ((2750.0, "word word word"),)
    assert main([*export, "--with-prompts"]) == 0
    assert read_trace(output)[0].prompt == "a secret dog"


def test_traces_of_other_tools_are_imported(tmp_path: Path) -> None:
    omni, cake = tmp_path / "omni.txt", tmp_path / "cake.jsonl"
    omni.write_text(
        "Request(timestamp=2.5, width=64, height=32, num_frames=33, num_inference_steps=4, "
        "fps=8, seed=3, slo_ms=None, prompt='it\\'s', request_id=7)\n"
        "Request(timestamp=0.5)\n"
    )
    cake.write_text('{"timestamp": 27482, "input_length": 6955, "hash_ids": [1]}\n')
    output = tmp_path / "trace.jsonl"
    common = ["--num-frames", "66", "--output", str(output)]
    assert main(["bench", "trace", "import", "--format", "vllm-omni", str(omni), *common]) == 0
    first, second = read_trace(output)
    assert (first.timestamp, first.num_frames) == (500, 66)
    assert (second.prompt, second.width, second.fps, second.seed) == ("it's", 64, 8, 3)
    assert second.extra == {"num_inference_steps": 4}
    assert main(["bench", "trace", "import", "--format", "mooncake", str(cake), *common]) == 0
    (third,) = read_trace(output)
    assert (third.timestamp, third.num_frames) == (27482, 66)
    assert third.extra["input_length"] == 6955


@pytest.mark.parametrize("line", ["Request(1)", "Request(", "Request(width=3)", "f(timestamp=g())"])
def test_a_broken_line_of_another_tool_is_named(
    tmp_path: Path, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "omni.txt"
    source.write_text(f"Request(timestamp=0)\n{line}\n")
    flags = ["--format", "vllm-omni", str(source), "--output", str(tmp_path / "t.jsonl")]
    assert main(["bench", "trace", "import", *flags]) == 2
    assert "omni.txt, line 2: got" in capsys.readouterr().err
    assert not (tmp_path / "t.jsonl").exists()


def test_a_trace_is_summarized(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "trace.jsonl"
    lines = [
        {"prompt": "p", "num_frames": 24, "timestamp": ms, "tenant": tenant}
        for ms, tenant in ((0, "a"), (1000, "a"), (4000, "b"))
    ]
    trace.write_text("\n".join(map(json.dumps, lines)))
    assert main(["bench", "trace", "show", str(trace)]) == 0
    said = capsys.readouterr().out
    assert "sessions:  3 in 4.0 s" in said
    assert "rate:      0.500 sessions/s, 18.0 frames/s" in said
    assert "coefficient of variation 0.50" in said
    assert "tenant:    a: 2 (67%)" in said
