"""`helios-serve bench`: measures video servers as their users experience them.

The benchmarks are imported only when one runs, so `serve` never loads them.
"""

import argparse
from typing import TYPE_CHECKING, Any

import msgspec

from helios_serve.entrypoints.cli.bench import compare, heliosbench, offline, sweep, trace
from helios_serve.entrypoints.cli.bench.run import (
    INVALID,
    check_report,
    command_line,
    files_of,
    finish,
    run_loop,
    without_preparation,
)
from helios_serve.entrypoints.cli.flags import add_options, read_flags
from helios_serve.options.benchmarks import LoadOptions, ReportOptions, TargetOptions

if TYPE_CHECKING:
    from helios_serve.benchmarks.measure.result_files import ResultFiles

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
    parser = commands.add_parser(
        "bench", help="measure the speed of a video server, and the quality of its videos"
    )
    benchmarks = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    add_serve(benchmarks)
    offline.add_benchmarks(benchmarks)
    sweep.add_benchmark(benchmarks)
    compare.add_benchmark(benchmarks)
    trace.add_benchmark(benchmarks)
    heliosbench.add_benchmark(benchmarks)


def add_serve(benchmarks: Any) -> None:
    parser = benchmarks.add_parser(
        "serve",
        help="put load on a running server, and measure what its users experience",
        epilog=SERVE_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=serve)
    add_options(parser.add_argument_group("server"), TargetOptions)
    add_options(parser.add_argument_group("load"), LoadOptions)
    add_options(parser.add_argument_group("results"), ReportOptions)


def serve(arguments: argparse.Namespace) -> int:
    """Put load on a server, and print what was measured. Returns the exit status."""
    load, target = read_flags(arguments, LoadOptions), read_flags(arguments, TargetOptions)
    report = read_flags(arguments, ReportOptions)
    names = check_report(report)
    from helios_serve.benchmarks.load.workload import draw_workload
    from helios_serve.benchmarks.runner import measure_server
    from helios_serve.benchmarks.targets.dialects import extra_body

    extra_body(target)
    files = files_of(report, target.backend, load, target.model)
    if report.num_runs > 1:
        return serve_repeatedly(load, target, report, names, files)
    workload = draw_workload(load)
    return finish(run_loop(measure_server(workload, target, report)), names, files)


def serve_repeatedly(
    load: LoadOptions,
    target: TargetOptions,
    report: ReportOptions,
    names: list[str],
    files: "ResultFiles | None",
) -> int:
    """Run the load several times with a seed for each, and print intervals over the runs.

    Each run has files of its own, and the result has their means. After an interrupt, no further
    run is started.
    """
    from helios_serve.benchmarks.load.workload import draw_workload
    from helios_serve.benchmarks.measure.printed import result_line
    from helios_serve.benchmarks.measure.repeated import repeated_lines, repeated_result
    from helios_serve.benchmarks.measure.result import result_of
    from helios_serve.benchmarks.runner import measure_server

    results, paths = [], []
    for number in range(report.num_runs):
        own = msgspec.structs.replace(load, seed=load.seed + number)
        again = report if number == 0 else without_preparation(report)
        measured = run_loop(measure_server(draw_workload(own), target, again))
        results.append(result_of(measured.run, command=command_line()) | {"run_number": number})
        print(f"run {number + 1} of {report.num_runs}: {result_line(results[-1])}", flush=True)
        run_files = None if files is None else files.of_run(number)
        paths.append("" if run_files is None else run_files.path.name)
        if run_files is not None:
            run_files.write(results[-1], measured.sent, measured.run.records)
        if measured.run.stopped_because is not None:
            break
    result = repeated_result(results, paths)
    print("\n".join(repeated_lines(result, names)), flush=True)
    if files is not None:
        files.write_result(result)
        print(f"{files.path}: result; {', '.join(paths)}: its runs")
    return 0 if result["helios"]["valid"] else INVALID
