"""The `helios-serve` command."""

import argparse
import sys
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from helios_serve import __version__
from helios_serve.entrypoints.cli import (
    generate,
    keys,
    run_batch,
    serve,
    workers,
)
from helios_serve.errors import HeliosError
from helios_serve.logger import show_logs

BAD_INPUT, INTERRUPTED = 2, 130
VLLM_OMNI_EXAMPLE = """\
example:
  vllm-omni serve MODEL --omni --deploy-config $(helios-serve vllm-omni-config) \\
    --max-num-seqs 16 --step-execution --diffusion-streaming-output
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit status.

    The status is 0 for success, 1 if some videos of `run-batch` failed, 2 for invalid input (with
    one line on standard error), and 130 after an interrupt.
    """
    parser = argparse.ArgumentParser(prog="helios-serve", description="Serve Helios long videos.")
    parser.add_argument("--version", action="version", version=f"helios-serve {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (generate, serve, run_batch, keys, workers):
        command.add_command(commands)
    add_vllm_omni_config(commands)
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
