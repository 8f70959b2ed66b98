"""Command-line flags generated from options, and flags shared by several commands."""

import argparse
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from msgspec import inspect

from helios_serve.entrypoints.cli import arguments as parsers
from helios_serve.errors import InvalidRequestError
from helios_serve.options.fields import Option, options_of, read_options, without_metadata
from helios_serve.options.scheduling import BatchLimits, SchedulingConfig
from helios_serve.options.workers import (
    DEFAULT_MODEL,
    ExecutorKind,
    WorkerConfig,
    WorkerGroup,
    WorkerOptions,
    groups_for,
)

if TYPE_CHECKING:
    from helios_serve.service.outbound.outbound import Outbound
    from helios_serve.service.webhooks.webhooks import Webhooks
    from helios_serve.store.video_store import VideoStore

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
    default = option.default_text.replace("%", "%%")
    return f"{text} (default: {default})"


def action(option: Option) -> dict[str, Any]:
    """Return argparse's arguments for an option of this type."""
    kind, metavar = option.kind, option.extra.get("metavar")
    match kind:
        case inspect.BoolType():
            return {"action": "store_const", "const": not option.default, "default": None}
        case inspect.LiteralType(values=values):
            return {"choices": values}
        case inspect.VarTupleType() if option.extra.get("parser") == "names":
            return {"type": parsers.names, "action": "extend", "metavar": metavar}
        case inspect.VarTupleType(item_type=item):
            return list_action(without_metadata(item)) | {"metavar": metavar}
        case inspect.TupleType():
            return {"type": parsers.bounds, "metavar": metavar}
        case inspect.IntType():
            return {"type": parsers.integer, "metavar": metavar}
        case inspect.FloatType():
            return {"type": parsers.number, "metavar": metavar}
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
    add_worker_groups(group)
    add_options(group, WorkerOptions, include=WORKER_GROUP_OPTIONS)
    add_options(group, BatchLimits)


def add_worker_groups(group: Any) -> None:
    """Add `--workers`."""
    group.add_argument(
        "--workers",
        type=workers,
        action="append",
        metavar="N[:ROLES][@KEY=VALUE,...]",
        help="start N workers with ROLES (encode, denoise, decode; joined by +) and the resources "
        "KEY=VALUE of a Ray cluster (cpus, gpus, fractions allowed; other keys are node labels); "
        "can be repeated (default: 1 worker with all roles)",
    )


def executor_kind(arguments: argparse.Namespace) -> ExecutorKind:
    """Return the chosen executor, or the default: ray with an address, else local."""
    default: ExecutorKind = "ray" if arguments.ray_address else "local"
    kind: ExecutorKind = arguments.executor or default
    return kind


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


SECRET_VARIABLE = "HELIOS_WEBHOOK_SECRET"
MAX_SECRET_FILE = 1 << 16
EXPECTED_SECRET = "whsec_ followed by 24 to 64 bytes in base64"


def add_outbound_flags(parser: Any) -> None:
    group = parser.add_argument_group("outbound requests")
    group.add_argument(
        "--allowed-media-domains",
        action="append",
        default=[],
        metavar="HOST,...",
        help="hosts from which references may be fetched; *.DOMAIN allows all its subdomains "
        "(default: none)",
    )
    group.add_argument(
        "--webhook-url",
        metavar="URL",
        help="https URL that receives an event when a video ends (default: none)",
    )
    group.add_argument(
        "--webhook-secret-file",
        type=Path,
        metavar="FILE",
        help=f"file with the secret that signs webhooks: {EXPECTED_SECRET} (default: the "
        f"environment variable {SECRET_VARIABLE})",
    )
    group.add_argument(
        "--allowed-webhook-domains",
        action="append",
        default=[],
        metavar="HOST,...",
        help="hosts to which webhooks may be sent (default: the host of --webhook-url)",
    )


def make_media(arguments: argparse.Namespace) -> "Outbound":
    """Return the client that fetches references. Raises InvalidRequestError for invalid hosts."""
    from helios_serve.service.media.references import media_outbound

    try:
        return media_outbound(split_hosts(arguments.allowed_media_domains))
    except ValueError as error:
        raise InvalidRequestError(str(error), param="allowed-media-domains") from error


def make_webhooks(arguments: argparse.Namespace, store: "VideoStore") -> "Webhooks | None":
    """Return the webhooks that the flags configure, or None without --webhook-url.

    Without it, stored events are deleted. Raises InvalidRequestError.
    """
    from helios_serve.service.outbound.outbound import Outbound, OutboundError
    from helios_serve.service.outbound.urls import AllowedDomains, parse_url
    from helios_serve.service.webhooks.endpoint import Endpoint
    from helios_serve.service.webhooks.webhooks import Webhooks
    from helios_serve.store.outbox import Outbox

    if arguments.webhook_url is None:
        reject_flags_without_url(arguments)
        Outbox.drop(store.database)
        return None
    try:
        host = parse_url(arguments.webhook_url, ("https",)).host
        allowed = split_hosts(arguments.allowed_webhook_domains) or (host,)
        domains = AllowedDomains(allowed, "--allowed-webhook-domains")
        outbound = Outbound(domains, ("https",))
        url = outbound.parse(arguments.webhook_url)
    except (ValueError, OutboundError) as error:
        raise InvalidRequestError(f"--webhook-url: {error}", param="webhook-url") from error
    endpoint = Endpoint(url, read_secrets(arguments.webhook_secret_file))
    return Webhooks(Outbox(store.database), endpoint, outbound)


def split_hosts(values: list[str]) -> tuple[str, ...]:
    """Split the values of a repeatable flag, each of which may list several hosts."""
    return tuple(part.strip() for value in values for part in value.split(",") if part.strip())


def reject_flags_without_url(arguments: argparse.Namespace) -> None:
    """Raise InvalidRequestError for webhook flags that have no effect without --webhook-url."""
    if arguments.webhook_secret_file is not None or arguments.allowed_webhook_domains:
        raise InvalidRequestError(
            "got --webhook-secret-file or --allowed-webhook-domains without --webhook-url, "
            "expected --webhook-url too",
            param="webhook-url",
        )


def read_secrets(path: Path | None) -> tuple[bytes, ...]:
    """Read the secrets from the file or from the environment variable, which is then removed."""
    from helios_serve.service.webhooks.endpoint import parse_secrets

    from_environment = os.environ.pop(SECRET_VARIABLE, None)
    source = SECRET_VARIABLE if path is None else str(path)
    if path is None and from_environment is None:
        raise InvalidRequestError(
            f"got --webhook-url without a secret, expected --webhook-secret-file FILE or "
            f"{SECRET_VARIABLE}",
            param="webhook-secret-file",
        )
    try:
        if path is None:
            text = from_environment or ""
        else:
            with path.open() as file:
                text = file.read(MAX_SECRET_FILE)
        return parse_secrets(text)
    except OSError as error:
        raise InvalidRequestError(
            f"{source}: {error.strerror}, expected a readable file", param="webhook-secret-file"
        ) from error
    except ValueError as error:
        raise InvalidRequestError(
            f"{source}: {error}, expected {EXPECTED_SECRET}", param="webhook-secret-file"
        ) from None
