"""The `helios-serve` command."""

import argparse
import logging
import os
import select
import sys
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from helios_serve import __version__
from helios_serve.entrypoints.cli import (
    completion,
    generate,
    keys,
    plan,
    run_batch,
    serve,
    simulate,
    version,
    workers,
)
from helios_serve.entrypoints.cli.bench import command as bench
from helios_serve.entrypoints.cli.parser import PROGRAM, CommandParser, unknown_variables
from helios_serve.errors import HeliosError, describe_error
from helios_serve.logger import logger, show_logs

BAD_INPUT, INTERRUPTED, READER_LEFT = 2, 130, 141
EXIT_CODES = """\
exit status:
  0    success
  1    some videos of run-batch failed, or `bench compare` found a regression
  2    an error, which one line on standard error describes
  3    `bench compare` needs more sessions to decide
  130  interrupted by Ctrl-C
  141  the reader of standard output has left, as `| head` does
"""
OTHER_VARIABLES = ("HELIOS_WEBHOOK_SECRET", "HELIOS_KERNELS", "HELIOS_ATTENTION")
"""Environment variables that belong to no flag."""
VLLM_OMNI_EXAMPLE = """\
example:
  vllm-omni serve MODEL --omni --deploy-config $(helios-serve vllm-omni-config) \\
    --max-num-seqs 16 --step-execution --diffusion-streaming-output
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit status, which EXIT_CODES describes."""
    parser = make_parser()
    try:
        arguments = parser.parse_args(argv)
    finally:
        has_reader_left()  # of a help text
    show_logs(level_of(arguments))
    for warning in unknown_variables(parser, OTHER_VARIABLES):
        logger.warning(warning)
    try:
        status: int = arguments.run(arguments)
    except (HeliosError, OSError) as error:
        if isinstance(error, BrokenPipeError) and has_reader_left():
            return READER_LEFT
        logger.debug("the command failed", exc_info=error)
        print(f"{PROGRAM}: error: {describe_error(error)}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted", file=sys.stderr)
        return INTERRUPTED
    has_reader_left()
    return status


def has_reader_left() -> bool:
    """Return whether nobody reads standard output any more; what is left of it is dropped."""
    if sys.stdout is None:  # closed by the shell
        return False
    try:
        sys.stdout.flush()
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)  # reports errors only
        is_open = not poll.poll(0)
    except BrokenPipeError:
        is_open = False
    except (OSError, ValueError):  # not a file
        return False
    if not is_open:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return not is_open


def make_parser() -> CommandParser:
    """Return the parser of all commands."""
    parser = CommandParser(
        prog=PROGRAM,
        description="Serve Helios long videos.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (generate, serve, run_batch, bench, simulate, plan, keys, workers, version):
        command.add_command(commands)
    completion.add_command(commands, parser)
    add_vllm_omni_config(commands)
    return parser


def level_of(arguments: argparse.Namespace) -> int:
    """Return the level of `--log-level`, or INFO for commands without that flag."""
    name: str = getattr(arguments, "log_level", "info")
    return logging.getLevelNamesMapping()[name.upper()]


def add_vllm_omni_config(commands: Any) -> None:
    """Register the command that prints the path of the deploy config for vLLM-Omni."""
    parser = commands.add_parser(
        "vllm-omni-config",
        help="print the path of the deploy config for vLLM-Omni",
        epilog=VLLM_OMNI_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=print_vllm_omni_config)


def print_vllm_omni_config(_: argparse.Namespace) -> int:
    print(files("helios_serve.integrations.vllm_omni") / "helios.yaml")
    return 0
