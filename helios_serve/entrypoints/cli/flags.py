"""Flags made from options, and the flags that every command with a model shares."""

import argparse
from collections.abc import Callable, Collection
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from helios_serve.entrypoints.cli import arguments as kinds
from helios_serve.options.fields import Option, options_of, read_options, without_metadata
from helios_serve.options.scheduling import BatchLimits, SchedulingConfig
from helios_serve.options.workers import (
    DEFAULT_MODEL,
    WorkerConfig,
    WorkerGroup,
    WorkerOptions,
    groups_for,
)

Options = TypeVar("Options", bound=msgspec.Struct)

AS_WORKERS = ("context_parallel", "history_blocks")
"""Worker options whose flags stand with `--workers`; the others stand with the model."""


def add_options(
    group: Any, kind: type[msgspec.Struct], *, only: Collection[str] = (), but: Collection[str] = ()
) -> None:
    """Add a flag for each option of `kind`, or `only` for some of them.

    A flag that is not given leaves None, which `given_options` passes over.
    """
    for name, option in options_of(kind).items():
        if name in but or (only and name not in only):
            continue
        group.add_argument(option.flag, dest=name, help=help_text(option), **action(option))


def help_text(option: Option) -> str:
    """The description and the default; a switch that turns something off says no default."""
    text = option.description.replace("%", "%%").rstrip(".")
    if text[1:2].islower():
        text = text[:1].lower() + text[1:]
    if isinstance(option.kind, inspect.BoolType):
        return f"do not {text}" if option.default else text
    return f"{text} (default: {option.default_text})"


def action(option: Option) -> dict[str, Any]:
    """How argparse reads a flag of this option's type."""
    kind, metavar = option.kind, option.extra.get("metavar")
    match kind:
        case inspect.BoolType():
            return {"action": "store_const", "const": not option.default, "default": None}
        case inspect.LiteralType(values=values):
            return {"choices": values}
        case inspect.VarTupleType(item_type=item):
            return of_list(without_metadata(item)) | {"metavar": metavar}
        case inspect.TupleType():
            return {"type": kinds.bounds, "metavar": metavar}
        case inspect.IntType():
            return {"type": int, "metavar": metavar}
        case inspect.FloatType():
            return {"type": float, "metavar": metavar}
        case inspect.StrType():
            return {"metavar": metavar}
    raise TypeError(f"no flag can be made of {option.name}: {kind}")


def of_list(item: inspect.Type) -> dict[str, Any]:
    match item:
        case inspect.StructType():
            return {"type": kinds.switch, "action": "append"}
        case inspect.IntType():
            return {"type": kinds.steps}
        case inspect.StrType():
            return {"type": kinds.sizes}
    raise TypeError(f"no flag can be made of a list of {item}")


def given_options(arguments: argparse.Namespace, kind: type[msgspec.Struct]) -> dict[str, Any]:
    """The options of `kind` that were given as flags, by name."""
    return {
        name: value
        for name in options_of(kind)
        if (value := getattr(arguments, name, None)) is not None
    }


def read_flags(arguments: argparse.Namespace, kind: type[Options]) -> Options:
    """The options of `kind` as the flags say; raises InvalidRequestError for one out of range."""
    return read_options(kind, given_options(arguments, kind))


def add_model_flags(parser: argparse.ArgumentParser) -> Any:
    """What is loaded, and how it is run; returns the group, for more flags of its kind."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        help="a local folder, a hub id, or the built-in nano, nano-mid, nano-base "
        f"(default: {DEFAULT_MODEL})",
    )
    add_options(group, WorkerOptions, but=AS_WORKERS)
    return group


def add_device_flags(parser: argparse.ArgumentParser) -> None:
    """How models are run, whichever they are."""
    add_options(parser.add_argument_group("model"), WorkerOptions, but=AS_WORKERS)


def add_worker_flags(parser: argparse.ArgumentParser) -> None:
    """Which workers run, where, and how much each does in a step."""
    group = parser.add_argument_group("workers")
    group.add_argument(
        "--executor",
        choices=("inline", "local", "ray"),
        help="threads, processes of this machine, or actors of a Ray cluster "
        "(default: ray with --ray-address, else local)",
    )
    group.add_argument(
        "--ray-address",
        metavar="HOST:PORT",
        help="join a Ray cluster; auto: the one of this machine (default: none)",
    )
    group.add_argument(
        "--workers",
        type=workers,
        action="append",
        metavar="N[:ROLES][@KEY=VALUE,...]",
        help="N workers with ROLES (encode, denoise, decode, joined by +) that take KEY=VALUE of a "
        "cluster (cpus, gpus, which may be a fraction; other keys are node labels); repeatable "
        "(default: 1 with all roles)",
    )
    add_options(group, WorkerOptions, only=AS_WORKERS)
    add_options(group, BatchLimits)


def worker_groups(arguments: argparse.Namespace, model: str) -> tuple[WorkerGroup, ...]:
    """The workers that the flags ask for, to run `model`.

    Raises InvalidRequestError if no worker would do some of the work, or if an option is out of
    its range.
    """
    groups: list[WorkerGroup] = arguments.workers or [WorkerGroup(WorkerConfig())]
    return groups_for(model, groups, read_flags(arguments, WorkerOptions))


def scheduling_config(arguments: argparse.Namespace) -> SchedulingConfig:
    """The scheduler's limits as the flags say; raises InvalidRequestError."""
    return SchedulingConfig(**msgspec.structs.asdict(read_flags(arguments, BatchLimits)))


workers: Callable[[str], WorkerGroup] = kinds.parser_of(
    "N, N:ROLES or N:ROLES@KEY=VALUE,..., such as 2:denoise@gpus=0.5,zone=a", WorkerGroup.parse
)
