"""`helios-serve plan`: predicts what GPUs deliver in each layout."""

import argparse
from pathlib import Path
from typing import Any

from helios_serve.entrypoints.cli import arguments as parsers
from helios_serve.entrypoints.cli.flags import add_options, given_options, read_flags
from helios_serve.options.fields import read_options
from helios_serve.options.planning import PlanOptions
from helios_serve.options.sampling import PUBLISHED_SIZE, SamplingParams
from helios_serve.options.workers import WorkerOptions

MODEL = "BestWishYsh/Helios-Distilled"
SAMPLING = ("steps", "guidance_scale", "fps")
EPILOG = """\
examples:
  helios-serve plan --gpus 8xh100 --size 640x384 --steps 1,1,1
  helios-serve plan --gpus 2xh200 --quantization fp8 --rates rates.json
"""


def add_command(commands: Any) -> None:
    """Register the command and its flags."""
    parser = commands.add_parser(
        "plan",
        help="predict the frames per second of a machine with GPUs, and what fits on it",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    parser.add_argument("--model", default=MODEL, help=f"folder or hub id (default: {MODEL})")
    add_options(parser, PlanOptions)
    parser.add_argument(
        "--size",
        type=parsers.size,
        default=PUBLISHED_SIZE,
        metavar="WIDTHxHEIGHT",
        help=f"size in pixels (default: {PUBLISHED_SIZE})",
    )
    add_options(parser, SamplingParams, include=SAMPLING)
    add_options(parser, WorkerOptions, include=("quantization",))


def run(arguments: argparse.Namespace) -> int:
    """Print the table. Returns the exit status."""
    options = read_flags(arguments, PlanOptions)
    width, height = arguments.size
    sampling = {name: getattr(arguments, name) for name in SAMPLING}
    given = {name: value for name, value in sampling.items() if value is not None}
    params = read_options(SamplingParams, given | {"width": width, "height": height})
    # Imported late: torch takes seconds to import.
    from helios_serve.engine import sizing

    machine = sizing.parse_gpus(options.gpus)
    if options.rates is not None:
        machine = sizing.with_measured_rates(machine, Path(options.rates))
    quantization = given_options(arguments, WorkerOptions).get("quantization")
    setup = sizing.make_setup(arguments.model, params, quantization, options.decode_dtype)
    for line in sizing.describe_plan(machine, setup):
        print(line)
    return 0
