"""`helios-serve bench`: measures video servers as their users feel them.

The package of the benchmarks is imported only when one runs: `serve` never loads it.
"""

import argparse
import asyncio
import shlex
import sys
import time
from collections.abc import Coroutine
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from helios_serve.entrypoints.cli.flags import add_options, read_flags
from helios_serve.errors import HeliosError
from helios_serve.options.benchmarks import LoadOptions, ReportOptions, TargetOptions

if TYPE_CHECKING:
    from helios_serve.benchmarks.runner import Measured

T = TypeVar("T")

INVALID = 1
SERVE_EPILOG = """\
Every latency counts from the time at which a session was intended to start. Exit status: 0 for a
valid run, 1 for an invalid one (interrupted, the server died, or this client was too slow).

examples:
  helios-serve bench serve --request-rate 0.5 --num-prompts 50 --width 128 --height 64
  helios-serve bench serve --endpoint /v1/realtime/video --users 4 --duration 60 \\
    --goodput ttfc:2000 stall:0 --result-dir results --report report.html
  helios-serve bench serve --dataset-name trace --dataset-path results/run.trace.jsonl
"""


def add_command(commands: Any) -> None:
    """Register the command and its benchmarks."""
    parser = commands.add_parser("bench", help="measure the speed of a video server")
    benchmarks = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    add_serve(benchmarks)


def add_serve(benchmarks: Any) -> None:
    parser = benchmarks.add_parser(
        "serve",
        help="load a running server, and measure what its users feel",
        epilog=SERVE_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=serve)
    add_options(parser.add_argument_group("server"), TargetOptions)
    add_options(parser.add_argument_group("load"), LoadOptions)
    add_options(parser.add_argument_group("results"), ReportOptions)


def serve(arguments: argparse.Namespace) -> int:
    """Load a server, and print what was measured. Returns the exit status."""
    require("aiohttp")
    if arguments.report is not None:
        require("matplotlib")
    from helios_serve.benchmarks.load.workload import draw_workload
    from helios_serve.benchmarks.measure.goodput import Slo
    from helios_serve.benchmarks.measure.result import metadata_of, percentiles_of
    from helios_serve.benchmarks.measure.result_files import ResultFiles, default_name
    from helios_serve.benchmarks.runner import measure_server
    from helios_serve.benchmarks.targets.dialects import extra_body

    load, target = read_flags(arguments, LoadOptions), read_flags(arguments, TargetOptions)
    report = read_flags(arguments, ReportOptions)
    # Checked before the run: an error after it would cost the measurement.
    Slo.parse(report.goodput)
    percentiles_of(report.metric_percentiles)
    metadata_of(report.metadata)
    extra_body(target)
    names = metric_names(report.percentile_metrics)
    workload = draw_workload(load)
    date = time.strftime("%Y%m%d-%H%M%S")
    rate = f"{load.users}users" if load.users else f"{load.request_rate:g}qps"
    files = ResultFiles.of(report, default_name(target.backend, rate, target.model, date))
    measured = run_loop(measure_server(workload, target, report))
    return finish(measured, names, files, date)


def finish(measured: "Measured", names: list[str], files: Any, date: str) -> int:
    """Print the result, and write it. Returns the exit status."""
    from helios_serve.benchmarks.measure.printed import printed
    from helios_serve.benchmarks.measure.result import result_of

    result = result_of(measured.run, command=command_line(), date=date)
    print(printed(result, names), flush=True)
    if files is not None:
        files.write(result, measured.sent, measured.run.records)
        print(f"{files.path}: result, with its trace and sessions beside it")
    if measured.run.report.report is not None:
        write_report(Path(measured.run.report.report), result, measured)
    return 0 if result["helios"]["valid"] else INVALID


def write_report(path: Path, result: dict[str, Any], measured: "Measured") -> None:
    from helios_serve.benchmarks.measure.result_files import write
    from helios_serve.benchmarks.reports.run_report import run_report

    write(path, run_report(result, measured.run).encode())
    print(f"{path}: report")


def metric_names(text: str) -> list[str]:
    """Parse `--percentile-metrics`. vLLM's names are aliases. Raises InvalidRequestError."""
    from helios_serve.benchmarks.measure.summary import METRICS
    from helios_serve.errors import InvalidRequestError

    aliases = {"ttft": "ttfc", "itl": "icl"}
    names = [aliases.get(name.strip(), name.strip()) for name in text.split(",")]
    for name in names:
        if name not in METRICS:
            raise InvalidRequestError(
                f"got --percentile-metrics {name!r}, expected names out of: {', '.join(METRICS)}",
                param="percentile_metrics",
            )
    return names


def run_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run a benchmark on uvloop, which delays a client less than asyncio's own loop."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def command_line() -> str:
    """Return the command that was run, without API keys."""
    words = ["helios-serve", *sys.argv[1:]]
    for index, word in enumerate(words):
        if word == "--api-key" and index + 1 < len(words):
            words[index + 1] = "***"
        elif word.startswith("--api-key="):
            words[index] = "--api-key=***"
    return shlex.join(words)


def require(package: str) -> None:
    """Raise HeliosError if a package of the extra `bench` is not installed."""
    try:
        import_module(package)
    except ImportError as error:
        raise HeliosError(
            f"cannot import {package}: install the benchmarks with "
            "`pip install 'helios-serve[bench]'`"
        ) from error
