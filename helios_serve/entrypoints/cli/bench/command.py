"""`helios-serve bench`: measures video servers as their users feel them.

The package of the benchmarks is imported only when one runs: `serve` never loads it.
"""

import argparse
from typing import Any

from helios_serve.entrypoints.cli.bench import compare, heliosbench, offline, sweep, trace
from helios_serve.entrypoints.cli.bench.run import check_report, files_of, finish, run_loop
from helios_serve.entrypoints.cli.flags import add_options, read_flags
from helios_serve.options.benchmarks import LoadOptions, ReportOptions, TargetOptions

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
    load, target = read_flags(arguments, LoadOptions), read_flags(arguments, TargetOptions)
    report = read_flags(arguments, ReportOptions)
    names = check_report(report)
    from helios_serve.benchmarks.load.workload import draw_workload
    from helios_serve.benchmarks.runner import measure_server
    from helios_serve.benchmarks.targets.dialects import extra_body

    extra_body(target)
    workload = draw_workload(load)
    files = files_of(report, target.backend, load, target.model)
    return finish(run_loop(measure_server(workload, target, report)), names, files)
