"""Flags of `helios-serve serve`: models, network, storage, access, time limits, observability."""

import argparse
from pathlib import Path
from typing import Any, NamedTuple, get_args

from helios_serve.entrypoints.cli.arguments import (
    add_data_dir,
    api_key,
    byte_count,
    cell_name,
    chunk_count,
    duration,
    lease_seconds,
    lora_module,
    port,
    seconds,
)
from helios_serve.entrypoints.cli.tls import add_tls_flags
from helios_serve.errors import InvalidRequestError
from helios_serve.logger import LogFormat
from helios_serve.options.server import KEPT_CHUNKS
from helios_serve.options.workers import DEFAULT_MODEL


class ServedModels(NamedTuple):
    """The models to serve, by the name that responses show, and further names of a model."""

    paths: dict[str, str]
    aliases: dict[str, str]


def served_models(arguments: argparse.Namespace) -> ServedModels:
    """Return the models and their names. Raises InvalidRequestError if these do not fit."""
    models: list[str] = arguments.model or [DEFAULT_MODEL]
    names: list[str] = arguments.served_model_name or models
    if len(models) > 1 and len(names) != len(models):
        raise InvalidRequestError(
            f"got {len(names)} names for {len(models)} models, expected one name for each",
            param="served-model-name",
        )
    if repeated := sorted({name for name in names if names.count(name) > 1 or not name.strip()}):
        raise InvalidRequestError(
            f"got model name {repeated[0]!r} more than once or empty, expected distinct names",
            param="served-model-name",
        )
    paths = dict(zip(names, models, strict=False))
    return ServedModels(paths, dict.fromkeys(names[len(models) :], names[0]))


def add_model_names(parser: Any) -> None:
    """Add the flags that say which models are served, and under which names."""
    parser.add_argument(
        "--model",
        dest="model",
        action="append",
        metavar="MODEL",
        help="same as MODEL; can be repeated (default: none)",
    )
    parser.add_argument(
        "--served-model-name",
        nargs="+",
        action="extend",
        metavar="NAME",
        help="names of the models in the API: one for each of several models, or any number for a "
        "single one; responses show the first (default: MODEL itself)",
    )


def add_server_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags for the network, storage, access and shutdown."""
    server = parser.add_argument_group("server")
    server.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: 127.0.0.1, this machine only)",
    )
    server.add_argument(
        "--port", type=port, default=8000, metavar="N", help="port to listen on (default: 8000)"
    )
    add_tls_flags(server)
    add_storage_flags(server)
    add_access_flags(server)
    add_timeout_flags(server)
    add_observability_flags(server)


def add_observability_flags(server: Any) -> None:
    server.add_argument(
        "--log-format",
        choices=get_args(LogFormat),
        default="text",
        help="format of the log on standard error; json writes one object a line (default: text)",
    )
    server.add_argument(
        "--no-access-log", action="store_true", help="do not log every request (default: log them)"
    )
    server.add_argument(
        "--public-metrics",
        action="store_true",
        help="serve /metrics and /load without an API key (default: a key is needed)",
    )
    server.add_argument(
        "--trace",
        type=Path,
        metavar="FILE.json",
        help="write a timeline of the workers' tasks, for Perfetto (default: none)",
    )
    server.add_argument(
        "--otlp-traces-endpoint",
        metavar="URL",
        help="collector to which OpenTelemetry spans of requests and videos are sent over "
        "OTLP/HTTP, such as http://localhost:4318 (default: none)",
    )


def add_storage_flags(server: Any) -> None:
    add_data_dir(server, "folder in which jobs and videos are stored")
    server.add_argument(
        "--cell",
        type=cell_name,
        metavar="NAME",
        help="name of this server among several behind one balancer; new ids contain it (default: "
        "that of the data folder, if it was ever given)",
    )
    server.add_argument(
        "--data-lease",
        type=lease_seconds,
        metavar="SECONDS",
        help="hold the data folder with a lease that is renewed, for storage that several machines "
        "mount: a server waits until nobody has renewed it for this time, and one that cannot "
        "renew it ends (default: a lock of the file system only)",
    )
    server.add_argument(
        "--retention",
        type=duration,
        metavar="TIME",
        help="delete finished videos and uploaded files after this time, such as 12h or 7d "
        "(default: keep forever)",
    )
    server.add_argument(
        "--max-disk",
        type=byte_count,
        metavar="SIZE",
        help="reject new videos while stored ones take more space, such as 500GB (default: no "
        "limit)",
    )


def add_access_flags(server: Any) -> None:
    server.add_argument(
        "--tenants",
        type=Path,
        metavar="FILE.toml",
        help="file with shares and limits of tenants; reloaded on SIGHUP (default: none)",
    )
    server.add_argument(
        "--api-key",
        type=api_key,
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY",
        help="also accept these API keys, for the tenant `default`; the variable HELIOS_API_KEY "
        "keeps them out of the list of processes (default: none)",
    )
    server.add_argument(
        "--without-keys",
        action="store_true",
        help="allow a public --host without API keys (see `helios-serve keys`): anyone who can "
        "connect can use the server",
    )
    server.add_argument(
        "--lora-modules",
        type=lora_module,
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=PATH",
        help="LoRA adapters that requests may use by name, as `lora` (default: none)",
    )


def add_timeout_flags(server: Any) -> None:
    server.add_argument(
        "--session-grace",
        type=seconds,
        default=30.0,
        metavar="SECONDS",
        help="how long a realtime session waits for its client to reconnect (default: 30)",
    )
    server.add_argument(
        "--endless-window",
        type=chunk_count,
        default=KEPT_CHUNKS,
        metavar="N",
        help="number of last chunks that viewers of a video without an end find; twice as many are "
        f"kept (default: {KEPT_CHUNKS})",
    )
    server.add_argument(
        "--endless-idle",
        type=seconds,
        default=300.0,
        metavar="SECONDS",
        help="end a video without an end that has had no viewer for this long (default: 300)",
    )
    server.add_argument(
        "--drain-timeout",
        type=seconds,
        default=30.0,
        metavar="SECONDS",
        help="how long the chunks under way may take to finish after SIGTERM (default: 30)",
    )
    server.add_argument(
        "--exit-without-workers",
        type=seconds,
        metavar="SECONDS",
        help="exit with an error, for a supervisor, when no worker could be started for this long "
        "(default: keep trying)",
    )
