"""The `helios-serve` command."""

import argparse
import sys
from collections.abc import Sequence

from helios_serve import __version__
from helios_serve.entrypoints.cli import (
    bench,
    generate,
    keys,
    run_batch,
    serve,
    vllm_omni_config,
    workers,
)
from helios_serve.errors import HeliosError
from helios_serve.logger import show_logs

BAD_INPUT, INTERRUPTED = 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit status.

    The status is 0 for success, 1 if some videos of `run-batch` failed, 2 for invalid input (with
    one line on standard error), and 130 after an interrupt.
    """
    parser = argparse.ArgumentParser(prog="helios-serve", description="Serve Helios long videos.")
    parser.add_argument("--version", action="version", version=f"helios-serve {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (generate, serve, run_batch, bench, keys, workers, vllm_omni_config):
        command.add_command(commands)
    arguments = parser.parse_args(argv)
    show_logs()
    try:
        status: int = arguments.run(arguments)
    except HeliosError as error:
        print(f"helios-serve: error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("helios-serve: interrupted", file=sys.stderr)
        return INTERRUPTED
    return status
