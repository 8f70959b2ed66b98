"""Command-line flags generated from options, and flags shared by several commands."""

import argparse
from collections.abc import Callable, Collection
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from helios_serve.entrypoints.cli import arguments as parsers
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

WORKER_GROUP_OPTIONS = ("context_parallel", "history_blocks")
"""Worker options that --help lists next to `--workers`; the others are listed with the model."""


def add_options(
    group: Any,
    kind: type[msgspec.Struct],
    *,
    include: Collection[str] = (),
    exclude: Collection[str] = (),
) -> None:
    """Add a flag for each option of `kind`, or only for those in `include`.

    A flag that is not given is None in the parsed arguments, and `given_options` leaves it out.
    """
    for name, option in options_of(kind).items():
        if name in exclude or (include and name not in include):
            continue
        group.add_argument(option.flag, dest=name, help=help_text(option), **action(option))


def help_text(option: Option) -> str:
    """Return the description and the default. Flags that turn something off have no default."""
    text = option.description.replace("%", "%%").rstrip(".")
    if text[1:2].islower():
        text = text[:1].lower() + text[1:]
    if isinstance(option.kind, inspect.BoolType):
        return f"do not {text}" if option.default else text
    return f"{text} (default: {option.default_text})"


def action(option: Option) -> dict[str, Any]:
    """Return argparse's arguments for an option of this type."""
    kind, metavar = option.kind, option.extra.get("metavar")
    match kind:
        case inspect.BoolType():
            return {"action": "store_const", "const": not option.default, "default": None}
        case inspect.LiteralType(values=values):
            return {"choices": values}
        case inspect.VarTupleType(item_type=item):
            return list_action(without_metadata(item)) | {"metavar": metavar}
        case inspect.TupleType():
            return {"type": parsers.bounds, "metavar": metavar}
        case inspect.IntType():
            return {"type": int, "metavar": metavar}
        case inspect.FloatType():
            return {"type": float, "metavar": metavar}
        case inspect.StrType():
            return {"metavar": metavar}
    raise TypeError(f"unsupported type of option {option.name}: {kind}")


def list_action(item: inspect.Type) -> dict[str, Any]:
    """Return argparse's arguments for a list of this item type."""
    match item:
        case inspect.StructType():
            return {"type": parsers.switch, "action": "append"}
        case inspect.IntType():
            return {"type": parsers.steps}
        case inspect.StrType(pattern=None):
            return {"nargs": "+", "action": "extend"}
        case inspect.StrType():
            return {"type": parsers.sizes}
    raise TypeError(f"unsupported list type: {item}")


def given_options(arguments: argparse.Namespace, kind: type[msgspec.Struct]) -> dict[str, Any]:
    """Return the options of `kind` that were given as flags, by name."""
    return {
        name: value
        for name in options_of(kind)
        if (value := getattr(arguments, name, None)) is not None
    }


def read_flags(arguments: argparse.Namespace, kind: type[Options]) -> Options:
    """Build the options of `kind` from the flags. Raises InvalidRequestError for invalid values."""
    return read_options(kind, given_options(arguments, kind))


def add_model_flags(parser: argparse.ArgumentParser) -> Any:
    """Add `--model` and the flags that say how it runs. Returns the group, for more flags."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        help="local folder, Hugging Face hub id, or the built-in nano, nano-mid or nano-base "
        f"(default: {DEFAULT_MODEL})",
    )
    add_options(group, WorkerOptions, exclude=WORKER_GROUP_OPTIONS)
    return group


def add_device_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say how models run, for commands with several models."""
    add_options(parser.add_argument_group("model"), WorkerOptions, exclude=WORKER_GROUP_OPTIONS)


def add_worker_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags for workers, executors and batches."""
    group = parser.add_argument_group("workers")
    group.add_argument(
        "--executor",
        choices=("inline", "local", "ray"),
        help="run workers as threads, as processes, or as actors of a Ray cluster "
        "(default: ray with --ray-address, else local)",
    )
    group.add_argument(
        "--ray-address",
        metavar="HOST:PORT",
        help="address of a Ray cluster to join; auto: the cluster on this machine (default: none)",
    )
    group.add_argument(
        "--workers",
        type=workers,
        action="append",
        metavar="N[:ROLES][@KEY=VALUE,...]",
        help="start N workers with ROLES (encode, denoise, decode; joined by +) and the resources "
        "KEY=VALUE of a Ray cluster (cpus, gpus, fractions allowed; other keys are node labels); "
        "can be repeated (default: 1 worker with all roles)",
    )
    add_options(group, WorkerOptions, include=WORKER_GROUP_OPTIONS)
    add_options(group, BatchLimits)


def worker_groups(arguments: argparse.Namespace, model: str) -> tuple[WorkerGroup, ...]:
    """Build the workers that run `model` from the flags.

    Raises InvalidRequestError if a role has no worker, or a value is out of range.
    """
    groups: list[WorkerGroup] = arguments.workers or [WorkerGroup(WorkerConfig())]
    return groups_for(model, groups, read_flags(arguments, WorkerOptions))


def scheduling_config(arguments: argparse.Namespace) -> SchedulingConfig:
    """Build the scheduler's limits from the flags. Raises InvalidRequestError."""
    return SchedulingConfig(**msgspec.structs.asdict(read_flags(arguments, BatchLimits)))


workers: Callable[[str], WorkerGroup] = parsers.value_parser(
    "N, N:ROLES or N:ROLES@KEY=VALUE,..., such as 2:denoise@gpus=0.5,zone=a", WorkerGroup.parse
)
