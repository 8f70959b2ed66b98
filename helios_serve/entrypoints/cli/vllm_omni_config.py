"""`helios-serve vllm-omni-config`: prints the path of the deploy config for vLLM-Omni."""

import argparse
from importlib.resources import files
from typing import Any

EPILOG = """\
example:
  vllm-omni serve MODEL --omni --deploy-config $(helios-serve vllm-omni-config) \\
    --max-num-seqs 16 --step-execution --diffusion-streaming-output
"""


def add_command(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "vllm-omni-config",
        help="print the path of the deploy config for vLLM-Omni",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)


def run(_: argparse.Namespace) -> int:
    print(files("helios_serve.integrations.vllm_omni") / "helios.yaml")
    return 0
