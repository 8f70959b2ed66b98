"""What the benchmarks of `helios-serve bench` share: checks before a run, and its end."""

import asyncio
import shlex
import sys
import time
from collections.abc import Coroutine
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from helios_serve.errors import HeliosError, InvalidRequestError
from helios_serve.options.benchmarks import LoadOptions, ReportOptions

if TYPE_CHECKING:
    from helios_serve.benchmarks.measure.result_files import ResultFiles
    from helios_serve.benchmarks.runner import Measured

T = TypeVar("T")

INVALID = 1
"""Exit status of an invalid run, whose numbers must not be used."""


def check_report(report: ReportOptions) -> list[str]:
    """Check the options of the result before a run: an error after it would lose the numbers.

    Returns the metrics to print. Raises InvalidRequestError, and HeliosError if a package is
    missing.
    """
    require("aiohttp")
    if report.report is not None:
        require("matplotlib")
    from helios_serve.benchmarks.measure.goodput import Slo
    from helios_serve.benchmarks.measure.result import metadata_of, percentiles_of

    Slo.parse(report.goodput)
    percentiles_of(report.metric_percentiles)
    metadata_of(report.metadata)
    return metric_names(report.percentile_metrics)


def files_of(
    report: ReportOptions, backend: str, load: LoadOptions, model: str | None
) -> "ResultFiles | None":
    """Return the files to write the result to; None if it is not written. Raises StorageError."""
    from helios_serve.benchmarks.measure.result_files import ResultFiles, default_name

    rate = f"{load.users}users" if load.users else f"{load.request_rate:g}qps"
    return ResultFiles.of(
        report, default_name(backend, rate, model, time.strftime("%Y%m%d-%H%M%S"))
    )


def without_preparation(report: ReportOptions) -> ReportOptions:
    """Return the options of a repeated run, which needs no warm-up and no check of the client."""
    return msgspec.structs.replace(report, num_warmups=0, no_self_check=True)


def finish(measured: "Measured", names: list[str], files: "ResultFiles | None", **top: Any) -> int:
    """Print and write the result, with the keys in `top` replaced. Returns the exit status."""
    from helios_serve.benchmarks.measure.printed import printed
    from helios_serve.benchmarks.measure.result import result_of

    result = result_of(measured.run, command=command_line()) | top
    print(printed(result, names), flush=True)
    if files is not None:
        files.write(result, measured.sent, measured.run.records)
        print(f"{files.path}: result, with its trace and sessions next to it")
    if measured.run.report.report is not None:
        from helios_serve.benchmarks.reports.run_report import run_report

        write_page(measured.run.report.report, run_report(result, measured.run))
    return 0 if result["helios"]["valid"] else INVALID


def write_page(path: str, text: str) -> None:
    """Write a report. Raises StorageError."""
    from helios_serve.benchmarks.measure.result_files import write

    write(Path(path), text.encode())
    print(f"{path}: report")


def metric_names(text: str) -> list[str]:
    """Parse `--percentile-metrics`. vLLM's names are aliases. Raises InvalidRequestError."""
    from helios_serve.benchmarks.measure.summary import METRICS

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


def require(package: str, *, extra: str = "bench") -> None:
    """Raise HeliosError if a package of an extra is not installed."""
    try:
        import_module(package)
    except ImportError as error:
        raise HeliosError(
            f"cannot import {package}: install the benchmarks with "
            f"`pip install 'helios-serve[{extra}]'`"
        ) from error
