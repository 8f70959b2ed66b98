"""`helios-serve version`: prints the version, and with --verbose all that a bug report needs."""

import argparse
from typing import Any

from helios_serve import __version__
from helios_serve.entrypoints.cli.parser import PROGRAM


def add_command(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser("version", help="print the version")
    parser.add_argument(
        "--verbose",
        action="store_const",
        const=True,
        default=None,
        help="also print packages, devices, kernels and the available attention",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the version. Returns the exit status."""
    print(f"{PROGRAM} {__version__}")
    if arguments.verbose:
        from helios_serve.engine.versions import describe_installation

        for line in describe_installation():
            print(line)
    return 0
