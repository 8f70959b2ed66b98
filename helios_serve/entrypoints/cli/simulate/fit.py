"""`helios-serve simulate fit`: the costs of a device from a trace of a real server."""

import argparse
from pathlib import Path
from typing import Any

import msgspec

from helios_serve.entrypoints.cli.flags import add_options, read_flags
from helios_serve.options.simulation import FitOptions
from helios_serve.options.workers import DEFAULT_MODEL

EPILOG = """\
Every fifth plan and task is held out; the errors are those on what was held out. Trace a load that
has batches of several sizes and all the video sizes that are to be simulated.

example:
  helios-serve serve nano --trace trace.json        # in one shell; then a load, then Ctrl-C
  helios-serve simulate fit trace.json --model nano --output costs.json
"""


def add_action(actions: Any) -> None:
    parser = actions.add_parser(
        "fit",
        help="fit a device's costs to a trace of a real server",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    parser.add_argument("trace", type=Path, help="file of `helios-serve serve --trace`")
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        help=f"model that the server made videos with (default: {DEFAULT_MODEL})",
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="FILE.json",
        help="file for the costs",
    )
    add_options(parser, FitOptions)


def run(arguments: argparse.Namespace) -> int:
    """Fit, print the costs and their errors, and write them. Returns the exit status."""
    from helios_serve.benchmarks.measure.machine import cpu_name
    from helios_serve.benchmarks.measure.result_files import json_of, write
    from helios_serve.benchmarks.simulator.fit import fit_costs
    from helios_serve.benchmarks.simulator.observations import read_observations
    from helios_serve.engine.launch import read_model_config

    options = read_flags(arguments, FitOptions)
    costs = fit_costs(
        read_observations(arguments.trace),
        read_model_config(arguments.model, "dummy"),
        name=options.name or cpu_name(),
        origin=f"fitted to {arguments.trace.name}, a trace of {arguments.model}",
        text_rows=options.text_rows,
    )
    for lane, error in costs.errors.items():
        print(f"{lane}: error {error.mape:.1%} of {error.n} held out, bias {error.bias:+.1%}")
    print(f"stages that run at the same time slow each other down by {costs.sharing:.0%}")
    write(arguments.output, json_of(msgspec.to_builtins(costs)))
    print(f"{arguments.output}: costs of {costs.name}")
    return 0
