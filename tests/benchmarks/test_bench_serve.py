"""`helios-serve bench serve`, as users start it, against a server that answers at once."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from helios_serve.benchmarks.load.self_check import MODULE
from helios_serve.entrypoints.cli.main import main
from tests.support.scripts import output_of, with_tests

Process = subprocess.Popen[str]
REALTIME = ("--endpoint", "/v1/realtime/video")


@contextmanager
def null_server() -> Iterator[tuple[Process, str]]:
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", MODULE], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with null_server() as (_, found):
        yield found


@contextmanager
def started(*flags: str, **options: Any) -> Iterator[Process]:
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "helios_serve", "bench", "serve", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for_load(process: Process, url: str) -> None:
    """Wait until sessions have ended: with one at a time, all except the last one created.

    The server numbers the videos that are requested, by this function as well.
    """
    assert process.stderr is not None
    assert process.stderr.readline().startswith("the load starts")
    first, polls = created(url), 0
    while created(url) - first - polls < 5:
        polls += 1
        time.sleep(0.01)


def created(url: str) -> int:
    """Return the number of the next video."""
    request = urllib.request.Request(f"{url}/v1/videos", b"prompt=x")
    with urllib.request.urlopen(request) as answer:
        name: str = json.load(answer)["id"]
    return int(name.removeprefix("video_"))


def bench(*flags: str, **options: Any) -> tuple[int, str, str]:
    """Return a function that runs the command, and returns its status, output and errors."""
    with started(*flags, **options) as process:
        output, errors = process.communicate(timeout=120)
    return process.returncode, output, errors


def result_in(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("*.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.mark.parametrize("endpoint", [(), REALTIME])
def test_a_run_against_a_server_that_answers_at_once(
    url: str, tmp_path: Path, endpoint: tuple[str, ...]
) -> None:
    """A hundred sessions a second take less than half a core of the client."""
    flags = ("--request-rate", "100", "--num-prompts", "100", "--result-dir", str(tmp_path))
    code, output, errors = bench("--base-url", url, *flags, *endpoint)
    result = result_in(tmp_path)
    assert code == 0 or "the client lags" in output, errors
    assert result["completed"] == 100
    assert result["helios"]["frames"] > 0
    assert result["helios"]["client"]["cpu"] < 0.5
    assert result["helios"]["client"]["null_ttfc_p99_ms"] > 0
    assert "100 offered = 100 completed" in output


def test_the_trace_of_a_run_can_be_replayed(url: str, tmp_path: Path) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    flags = ("--base-url", url, "--no-self-check")
    shape = ("--num-frames", "33", "--seed", "5")
    bench(*flags, *shape, "--request-rate", "50", "--num-prompts", "20", "--result-dir", str(first))
    (trace,) = first.glob("*.trace.jsonl")
    replay = ("--dataset-name", "trace", "--dataset-path", str(trace))
    bench(*flags, *replay, "--result-dir", str(again))
    digests = {result_in(folder)["helios"]["workload"]["sha256"] for folder in (first, again)}
    assert len(digests) == 1


def test_an_interrupt_writes_what_was_measured(url: str, tmp_path: Path) -> None:
    load = ("--request-rate", "20", "--num-prompts", "10000", "--max-concurrency", "1")
    flags = (*load, "--result-dir", str(tmp_path))
    with started("--base-url", url, "--no-self-check", *flags) as process:
        wait_for_load(process, url)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "interrupted: ending the sessions under way" in errors
    assert "INVALID RUN" in output
    result = result_in(tmp_path)
    assert result["helios"]["invalid_because"][0] == "interrupted by the user"
    assert 0 < result["completed"] <= result["helios"]["offered"] < 10_000


def test_a_server_that_dies_ends_the_run_and_loses_nothing(tmp_path: Path) -> None:
    load = ("--request-rate", "20", "--num-prompts", "10000", "--max-concurrency", "1")
    flags = (*load, "--result-dir", str(tmp_path))
    with (
        null_server() as (server, found),
        started("--base-url", found, "--no-self-check", *flags) as process,
    ):
        wait_for_load(process, found)
        server.kill()
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "the server cannot be reached" in output
    result = result_in(tmp_path)
    assert result["completed"] > 0
    assert result["helios"]["failures"]["connection"] >= 10
    assert result["completed"] + result["failed"] == result["helios"]["offered"]


def test_a_full_disk_is_one_line_after_the_result(url: str, tmp_path: Path) -> None:
    """The numbers are printed first."""
    code, output, errors = bench(
        *("--base-url", url, "--no-self-check", "--num-prompts", "3"),
        *("--result-dir", str(tmp_path)),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10)),
    )
    assert code == 2
    assert "3 offered = 3 completed" in output
    _, line = errors.strip().splitlines()
    assert line.startswith(f"helios-serve: error: cannot write {tmp_path}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--base-url", "http://127.0.0.1:1", "--ready-check-timeout-sec", "0"), "cannot reach"),
        (("--goodput", "fast:1"), "expected KEY:VALUE"),
        (("--metric-percentiles", "50,x"), "expected numbers between 0 and 100"),
        (("--percentile-metrics", "tpot"), "expected names out of: ttfc"),
        (("--metadata", "x"), "expected KEY=VALUE"),
        (("--extra-body", "{"), "--extra-body"),
        (("--request-rate", "0"), "expected at least"),
        (("--unknown", "1"), "got unknown flag --unknown"),
        (("--header", "x"), "expected NAME=VALUE"),
        (("--base-url", "nonsense"), "got URL 'nonsense', expected one such as http://"),
        (("--base-url", "http://127.0.0.1:99999"), "got URL 'http://127.0.0.1:99999'"),
        (("--base-url", "ftp://127.0.0.1"), "got URL 'ftp://127.0.0.1'"),
        (("--slo-scale", "0.5"), "expected at least 1"),
        (("--num-runs", "0"), "expected 1 to 1000"),
    ],
)
def test_bad_input_is_one_line(
    flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code: object = main(["bench", "serve", *flags])
    except SystemExit as left:  # argparse's own errors
        code = left.code
    said = capsys.readouterr()
    assert code == 2
    assert said.out == ""
    line, *hint = said.err.splitlines()
    assert message in line
    assert all(text.startswith("Try '") for text in hint)


def test_without_its_packages_the_command_says_what_to_install() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.without_benchmarks_cli", "bench", "serve"],
        env=os.environ | with_tests(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "helios-serve: error: cannot import aiohttp: install the benchmarks with "
        "`pip install 'helios-serve[bench]'`\n"
    )


def test_other_commands_do_without_the_benchmarks() -> None:
    assert "helios-serve" in output_of("without_benchmarks_cli", "--version")
