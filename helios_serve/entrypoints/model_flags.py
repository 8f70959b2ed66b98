"""Flags that every command with a model shares."""

import argparse
import math
from typing import Any

import msgspec

from helios_serve.config import DEFAULT_MODEL, ROLES, Resources, Role, WorkerConfig, WorkerGroup
from helios_serve.entrypoints.arguments import parser_of
from helios_serve.errors import InvalidRequestError


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
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    group.add_argument("--dtype", default="auto", help="auto, bfloat16 or float32")
    group.add_argument(
        "--load-format",
        choices=("auto", "dummy"),
        default="auto",
        help="dummy: random weights, to measure speed without a download",
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
        "--history-blocks",
        type=int,
        metavar="N",
        help="blocks of a denoising worker's history pool (as many as free memory allows)",
    )


def worker_groups(arguments: argparse.Namespace, model: str) -> tuple[WorkerGroup, ...]:
    """What the flags ask for, to run `model`; raises InvalidRequestError where nobody would do
    some of the work."""
    shared = {
        name: getattr(arguments, name)
        for name in ("device", "dtype", "load_format", "batch_invariant", "history_blocks")
    }
    groups: list[WorkerGroup] = arguments.workers or [WorkerGroup(WorkerConfig())]
    idle = [role for role in ROLES if not any(role in group.config.roles for group in groups)]
    if idle:
        raise InvalidRequestError(
            f"got --workers of which none is to {' or '.join(idle)}, expected at least one",
            param="workers",
        )
    return tuple(
        WorkerGroup(msgspec.structs.replace(group.config, model=model, **shared), group.count)
        for group in groups
    )


def _workers(text: str) -> WorkerGroup:
    head, has_needs, needs = text.partition("@")
    number, has_names, names = head.partition(":")
    if (has_names and not names) or (has_needs and not needs):
        raise ValueError(text)
    count = int(number)
    chosen = names.split("+") if names else list(ROLES)
    if count < 1 or not set(chosen) <= set(ROLES):
        raise ValueError(text)
    roles: tuple[Role, ...] = tuple(role for role in ROLES if role in chosen)
    return WorkerGroup(WorkerConfig(roles=roles, resources=_resources(needs)), count)


def _resources(text: str) -> Resources:
    given = [_pair(part) for part in text.split(",")] if text else []
    pairs = dict(given)
    if len(pairs) < len(given):
        raise ValueError(text)
    gpus = pairs.pop("gpus", None)
    return Resources(
        num_cpus=_amount(pairs.pop("cpus", "1")),
        num_gpus=None if gpus is None else _amount(gpus),
        labels=pairs,
    )


def _amount(text: str) -> float:
    amount = float(text)
    if not 0 <= amount < math.inf:
        raise ValueError(text)
    return amount


def _pair(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not (key and separator and value):
        raise ValueError(text)
    return key, value


workers = parser_of(
    "N, N:ROLES or N:ROLES@KEY=VALUE,..., such as 2:denoise@gpus=0.5,zone=a", _workers
)
