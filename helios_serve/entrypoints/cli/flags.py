"""Flags that every command with a model shares."""

import argparse
from typing import Any

from helios_serve.entrypoints.cli.arguments import parser_of, sizes
from helios_serve.options.workers import DEFAULT_MODEL, WorkerConfig, WorkerGroup, groups_for


def add_model_flags(parser: argparse.ArgumentParser) -> Any:
    """What is loaded, and where; returns the group, for more flags of its kind."""
    group = add_device_flags(parser)
    group.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        help="a local folder, a hub id, or the built-in nano, nano-mid, nano-base (nano)",
    )
    return group


def add_device_flags(parser: argparse.ArgumentParser) -> Any:
    """How a model is run, whichever it is."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--device", default="auto", help="auto, cpu, cuda (each worker the next one), cuda:1, ..."
    )
    group.add_argument("--dtype", default="auto", help="auto, bfloat16 or float32")
    group.add_argument(
        "--load-format",
        choices=("auto", "dummy"),
        default="auto",
        help="dummy: random weights, to measure speed without a download",
    )
    group.add_argument(
        "--decode-dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of the VAE's decoder; bfloat16 takes half the memory, less exactly (float32)",
    )
    group.add_argument(
        "--compile-sizes",
        type=sizes,
        default=(),
        metavar="WIDTHxHEIGHT,...",
        help="compile the VAE's decoder for these, a minute or so each at start (none)",
    )
    group.add_argument(
        "--quantization",
        choices=("fp8",),
        help="fp8: the transformer's large linear layers in half the memory, less exactly",
    )
    group.add_argument(
        "--offload",
        action="store_true",
        help="keep weights on the host and copy them to the device layer by layer: 3.3 GB at a "
        "time of 14B, slowly",
    )
    group.add_argument(
        "--batch-invariant",
        action="store_true",
        help="run segments one by one, so that results repeat bitwise",
    )
    return group


def add_worker_flags(parser: argparse.ArgumentParser) -> None:
    """Who does the work."""
    group = parser.add_argument_group("workers")
    group.add_argument(
        "--executor",
        choices=("inline", "local", "ray"),
        help="threads, processes of this machine, or actors of a Ray cluster "
        "(ray with --ray-address, else local)",
    )
    group.add_argument(
        "--ray-address", metavar="HOST:PORT", help="join a Ray cluster; auto: the one around us"
    )
    group.add_argument(
        "--workers",
        type=workers,
        action="append",
        metavar="N[:ROLES][@KEY=VALUE,...]",
        help="how many, what for (roles of encode, denoise, decode joined by +; all), and what "
        "each takes of a cluster (cpus, gpus, which may be a fraction; other keys are node "
        "labels); repeatable. 1",
    )
    group.add_argument(
        "--context-parallel",
        type=int,
        default=1,
        metavar="N",
        help="devices that share each denoise step of a worker, which is N processes then (1)",
    )
    group.add_argument(
        "--history-blocks",
        type=int,
        metavar="N",
        help="blocks of a denoising worker's history pool (as many as free memory allows)",
    )


def worker_groups(arguments: argparse.Namespace, model: str) -> tuple[WorkerGroup, ...]:
    """What the flags ask for, to run `model`; raises InvalidRequestError where nobody would do
    some of the work."""
    groups: list[WorkerGroup] = arguments.workers or [WorkerGroup(WorkerConfig())]
    return groups_for(model, groups, arguments)


workers = parser_of(
    "N, N:ROLES or N:ROLES@KEY=VALUE,..., such as 2:denoise@gpus=0.5,zone=a", WorkerGroup.parse
)
