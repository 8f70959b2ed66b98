"""`helios-serve bench sweep`: measures a server under several loads, or finds its capacity."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from helios_serve.entrypoints.cli.bench.run import (
    check_report,
    command_line,
    run_loop,
    without_preparation,
    write_page,
)
from helios_serve.entrypoints.cli.flags import add_options, read_flags
from helios_serve.errors import HeliosError, InvalidRequestError
from helios_serve.options.benchmarks import LoadOptions, ReportOptions, TargetOptions
from helios_serve.options.fields import read_options
from helios_serve.options.sweeps import SweepOptions

if TYPE_CHECKING:
    from helios_serve.benchmarks.load.search import Capacity

EPILOG = """\
A search doubles the load until it is too much, and then halves the interval. A load is carried if
the lower bound of the share of good sessions (--goodput) reaches --target: all of 25 sessions for
0.9, all of 268 for 0.99. Exit status: 0, or 1 if not even the smallest load was carried.

examples:
  helios-serve bench sweep --search users --search-limit 16 --target 0.9 --num-prompts 30 \\
    --goodput ttfc:3000 stall:0 --result-dir sweep --report sweep.html
  helios-serve bench sweep --bench-params loads.json --num-prompts 50 --result-dir sweep
"""
DEFAULT_FOLDER = "sweep"
SUMMARY = "summary.json"


def add_benchmark(benchmarks: Any) -> None:
    parser = benchmarks.add_parser(
        "sweep",
        help="measure a server under several loads, or find its capacity",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    add_options(parser.add_argument_group("sweep"), SweepOptions)
    add_options(parser.add_argument_group("server"), TargetOptions)
    add_options(parser.add_argument_group("load"), LoadOptions)
    add_options(parser.add_argument_group("results"), ReportOptions)


def run(arguments: argparse.Namespace) -> int:
    """Sweep, and print a line for each load. Returns the exit status."""
    options, report = read_flags(arguments, SweepOptions), read_flags(arguments, ReportOptions)
    load, target = read_flags(arguments, LoadOptions), read_flags(arguments, TargetOptions)
    check_report(report)
    if (options.bench_params is None) == (options.search is None):
        raise InvalidRequestError(
            "got both or none of --bench-params and --search, expected one of them", param="search"
        )
    if options.search is not None and report.num_runs > 1:
        raise InvalidRequestError(
            "got --num-runs with --search, expected --max-runs", param="num_runs"
        )
    sweep = Sweep(options, load, target, report)
    capacity = run_loop(sweep.run())
    sweep.write_summary()
    if report.report is not None:
        sweep.write_report(report.report, capacity)
    if capacity is None:
        return 0
    print(capacity_text(capacity, options))
    return 0 if capacity.passed is not None else 1


class Sweep:
    """Runs loads one after the other against one server; each result is written at once."""

    def __init__(
        self,
        options: SweepOptions,
        load: LoadOptions,
        target: TargetOptions,
        report: ReportOptions,
    ) -> None:
        self.options = options
        self.load = load
        self.target = target
        self.report = report
        self.folder = Path(report.result_dir or DEFAULT_FOLDER)
        self.results: list[dict[str, Any]] = []
        self.loads: list[tuple[str, float]] = []

    async def run(self) -> "Capacity | None":
        """Run the grid, or the search, which returns a capacity."""
        if self.options.search is None:
            for number, changes in enumerate(self.grid()):
                load = read_options(LoadOptions, msgspec.structs.asdict(self.load) | changes)
                for run_number in range(self.report.num_runs):
                    seeded = msgspec.structs.replace(load, seed=load.seed + run_number)
                    await self.measure(seeded, "run", float(number), run_number)
            return None
        from helios_serve.benchmarks.load.search import CapacitySearch

        search = CapacitySearch(
            self.measure_axis,
            target=self.options.target,
            resolution=self.options.resolution,
            max_runs=self.options.max_runs,
            is_whole=self.options.search == "users",
        )
        return await search.run(self.options.search_start, self.options.search_limit)

    def grid(self) -> list[dict[str, Any]]:
        """Read the loads of `--bench-params`. Raises InvalidRequestError."""
        from helios_serve.benchmarks.load.json_file import read_json

        path = Path(self.options.bench_params or "")
        kind = list[dict[str, Any]]
        return read_json(path, kind, param="bench_params", flag="--bench-params")

    async def measure_axis(self, size: float, number: int) -> tuple[int, int]:
        """Run a load of a search. A load that is run again gets another seed."""
        changes: dict[str, Any] = {"seed": self.load.seed + number}
        if self.options.search == "users":
            changes["users"] = max(1, int(size))
        else:
            changes["request_rate"] = size
        load = msgspec.structs.replace(self.load, **changes)
        block = (await self.measure(load, self.options.search or "", size))["helios"]
        if not block["valid"]:
            raise HeliosError(
                f"a run of the search is invalid: {'; '.join(block['invalid_because'])}"
            )
        return block["good"], block["offered"]

    async def measure(
        self, load: LoadOptions, name: str, size: float, run_number: int = 0
    ) -> dict[str, Any]:
        """Run a load, and keep its result. `run_number` counts the runs of one load, as in vLLM."""
        from helios_serve.benchmarks.load.workload import draw_workload
        from helios_serve.benchmarks.measure.printed import result_line
        from helios_serve.benchmarks.measure.result import result_of
        from helios_serve.benchmarks.measure.result_files import ResultFiles
        from helios_serve.benchmarks.runner import measure_server

        report = msgspec.structs.replace(self.report, result_dir=str(self.folder))
        if self.results:
            report = without_preparation(report)
        report = msgspec.structs.replace(report, result_filename=None)
        files = ResultFiles.of(report, f"{len(self.results) + 1:03}.json")
        assert files is not None
        measured = await measure_server(draw_workload(load), self.target, report)
        result = result_of(measured.run, command=command_line()) | {"run_number": run_number}
        self.results.append(result)
        self.loads.append((name, size))
        print(f"{name} {size:g}: {result_line(result)}", flush=True)
        files.write(result, measured.sent, measured.run.records)
        return result

    def write_summary(self) -> None:
        """Write all results as one list, which `vllm bench sweep plot` reads."""
        from helios_serve.benchmarks.measure.result_files import write

        write(self.folder / SUMMARY, msgspec.json.encode(self.results) + b"\n")
        print(f"{self.folder / SUMMARY}: {len(self.results)} results")

    def write_report(self, path: str, capacity: "Capacity | None") -> None:
        from helios_serve.benchmarks.reports.sweep_report import sweep_report

        text = sweep_report(
            self.loads, self.results, capacity, target=self.options.target, command=command_line()
        )
        write_page(path, text)


def capacity_text(capacity: "Capacity", options: SweepOptions) -> str:
    """Return the capacity as text, with the loads on both sides of it."""
    for each in capacity.tried:
        print(f"  {each.load:g}: {each.verdict} ({each.good} of {each.offered}, {each.runs} runs)")
    if capacity.passed is None:
        return f"capacity: below {capacity.failed:g} {options.search}"
    beyond = "" if capacity.failed is None else f"; {capacity.failed:g} was not carried"
    return f"capacity: {capacity.passed:g} {options.search} at {options.target:g} good{beyond}"
