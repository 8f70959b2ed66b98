"""The `helios-serve` command."""

import argparse
from collections.abc import Sequence

from helios_serve import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="helios-serve", description="Serve Helios long videos.")
    parser.add_argument("--version", action="version", version=__version__)
    parser.parse_args(argv)
    parser.print_help()
    return 0
