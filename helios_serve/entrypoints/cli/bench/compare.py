"""`helios-serve bench compare`: compares two results, or two servers in turns."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from helios_serve.entrypoints.cli.bench.run import (
    check_report,
    command_line,
    run_loop,
    write_page,
)
from helios_serve.entrypoints.cli.flags import add_options, read_flags
from helios_serve.errors import InvalidRequestError
from helios_serve.options.benchmarks import LoadOptions, ReportOptions, TargetOptions
from helios_serve.options.sweeps import CompareOptions

if TYPE_CHECKING:
    from helios_serve.benchmarks.measure.comparison import Compared, Gate, Side

EPILOG = """\
Exit status: 0 if no gate fails, 1 for a regression, 3 if an interval lies on both sides of a gate:
then more sessions, or more rounds, are needed. Results that are timed in different ways, and
invalid ones, are not compared.

examples:
  helios-serve bench compare base.json new.json --fail-on 'p90_ttfc_ms>+10%' --report compare.html
  helios-serve bench compare --alternate 5 --base-url http://127.0.0.1:8000 \\
    --new-url http://127.0.0.1:8001 --request-rate 0.5 --num-prompts 50
"""


def add_benchmark(benchmarks: Any) -> None:
    parser = benchmarks.add_parser(
        "compare",
        help="compare two results, or two servers in turns",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "results",
        nargs="*",
        type=Path,
        metavar="BASE.json NEW.json",
        help="result files; the files of their sessions must be next to them (default: none)",
    )
    add_options(parser.add_argument_group("comparison"), CompareOptions)
    add_options(parser.add_argument_group("servers, with --alternate"), TargetOptions)
    add_options(parser.add_argument_group("load, with --alternate"), LoadOptions)
    add_options(parser.add_argument_group("results"), ReportOptions, exclude=("num_runs",))


def run(arguments: argparse.Namespace) -> int:
    """Compare, and print a table. Returns the exit status."""
    options, report = read_flags(arguments, CompareOptions), read_flags(arguments, ReportOptions)
    check_report(report)
    from helios_serve.benchmarks.measure.comparison import Gate, exit_status, table_lines

    gates = [Gate.parse(text) for text in options.fail_on]
    if options.alternate is not None:
        compared = run_loop(alternate(arguments, options, report, gates))
        names = ("base", "new")
    elif len(arguments.results) == 2:
        compared = compare_files(arguments.results[0], arguments.results[1], gates)
        names = (arguments.results[0].name, arguments.results[1].name)
    else:
        raise InvalidRequestError(
            f"got {len(arguments.results)} results, expected BASE.json and NEW.json, or "
            "--alternate with --base-url and --new-url",
            param="results",
        )
    print("\n".join(table_lines(compared)))
    status = exit_status(compared)
    print({0: "no regression", 1: "REGRESSION", 3: "INCONCLUSIVE: measure more sessions"}[status])
    if report.report is not None:
        from helios_serve.benchmarks.reports.sweep_report import compare_report

        write_page(report.report, compare_report(compared, names, command_line()))
    return status


def compare_files(base: Path, new: Path, gates: "list[Gate]") -> "list[Compared]":
    """Compare two results. Results of several runs are compared run by run."""
    from helios_serve.benchmarks.measure.comparison import (
        Side,
        check_comparable,
        compare,
        compare_rounds,
        usable_gates,
    )
    from helios_serve.benchmarks.measure.result_files import read_result, read_runs, read_sessions

    def sides(path: Path) -> "list[Side]":
        return [Side(str(run), read_result(run), read_sessions(run)) for run in read_runs(path)]

    found = sides(base), sides(new)
    if len(found[0]) != len(found[1]):
        raise InvalidRequestError(
            f"got {len(found[0])} and {len(found[1])} runs, expected the same number "
            "in both results",
            param="results",
        )
    pairs = list(zip(*found, strict=True))
    if len(pairs) > 1:
        for pair in pairs:
            check_comparable(*pair)
        return compare_rounds(pairs, gates or usable_gates(*pairs[0]))
    one, other = pairs[0]
    check_comparable(one, other)
    digests = {side.result["helios"]["workload"]["sha256"] for side in (one, other)}
    if len(digests) > 1:
        print("note: the results come from different workloads")
    return compare(one, other, gates or usable_gates(one, other))


async def alternate(
    arguments: argparse.Namespace,
    options: CompareOptions,
    report: ReportOptions,
    gates: "list[Gate]",
) -> "list[Compared]":
    """Measure both servers in each round. They take turns at being measured first."""
    from helios_serve.benchmarks.measure.comparison import (
        check_comparable,
        compare_rounds,
        usable_gates,
    )

    target, load = read_flags(arguments, TargetOptions), read_flags(arguments, LoadOptions)
    if options.new_url is None:
        raise InvalidRequestError("missing --new-url, expected it for --alternate", param="new_url")
    targets = {
        "base": target,
        "new": msgspec.structs.replace(target, base_url=options.new_url),
    }
    pairs: list[tuple[Side, Side]] = []
    for number in range(options.alternate or 0):
        order = ("base", "new") if number % 2 == 0 else ("new", "base")
        seeded = msgspec.structs.replace(load, seed=load.seed + number)
        sides = {name: await measure(name, number, targets[name], seeded, report) for name in order}
        check_comparable(sides["base"], sides["new"])
        pairs.append((sides["base"], sides["new"]))
    return compare_rounds(pairs, gates or usable_gates(*pairs[0]))


async def measure(
    name: str, number: int, target: TargetOptions, load: LoadOptions, report: ReportOptions
) -> "Side":
    """Measure one server once, and write its result if `report` says so."""
    from helios_serve.benchmarks.load.workload import draw_workload
    from helios_serve.benchmarks.measure.comparison import Side
    from helios_serve.benchmarks.measure.result import result_of
    from helios_serve.benchmarks.measure.result_files import ResultFiles
    from helios_serve.benchmarks.runner import measure_server

    print(f"round {number + 1}, {name}", flush=True)
    measured = await measure_server(draw_workload(load), target, report)
    result = result_of(measured.run, command=command_line())
    own = msgspec.structs.replace(report, result_filename=None)
    if (files := ResultFiles.of(own, f"{name}-{number + 1}.json")) is not None:
        files.write(result, measured.sent, measured.run.records)
    return Side(f"round {number + 1}, {name}", result, measured.run.records)
