"""`helios-serve serve`: serves the video API over HTTP."""

import argparse
import os
import signal
import socket
from contextlib import ExitStack, closing
from importlib import import_module
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import msgspec

from helios_serve.engine.preflight import check_model
from helios_serve.entrypoints.cli.arguments import add_log_flags
from helios_serve.entrypoints.cli.flags import (
    add_device_flags,
    add_options,
    add_outbound_flags,
    add_worker_flags,
    executor_kind,
    make_media,
    make_webhooks,
    read_flags,
    scheduling_config,
    worker_groups,
)
from helios_serve.entrypoints.cli.outputs import check_outputs
from helios_serve.entrypoints.cli.server_flags import (
    ServedModels,
    add_model_names,
    add_server_flags,
    served_models,
)
from helios_serve.entrypoints.cli.settings import variable_of
from helios_serve.entrypoints.cli.tls import address_of, check_tls
from helios_serve.errors import HeliosError, InvalidRequestError
from helios_serve.logger import logger, show_server_logs
from helios_serve.options.edge import EdgeOptions
from helios_serve.options.objects import ObjectOptions
from helios_serve.options.server import ServerConfig
from helios_serve.options.workers import DEFAULT_MODEL
from helios_serve.store.disk import Ballast
from helios_serve.store.keys import KeyStore
from helios_serve.store.lease import Lease, end_process, kept, wait_for_lease

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from helios_serve.engine.loop.engine_core import EngineCore
    from helios_serve.metrics import Metrics
    from helios_serve.service.tenants import TenantsFile
    from helios_serve.spans import Spans

LOADED_FIRST = ("helios_serve.entrypoints.http.app", "helios_serve.engine.requests.async_engine")
"""Modules that take seconds to load, which a server that waits for a lease does meanwhile."""
EPILOG = """\
examples:
  helios-serve serve
  helios-serve serve BestWishYsh/Helios-Distilled --port 8000 --workers 2
  helios-serve serve --config helios.yaml --port 8001
  helios-serve serve /models/helios --ray-address auto --workers 1:encode+decode --workers 7:denoise
"""
CLOSE_SECONDS = 5
"""Seconds that open responses may take to finish after draining."""
CLIENT_SECONDS = 60
"""Seconds without a pong after which a WebSocket client is considered disconnected."""
UNSENT_BYTES = 128 << 10
"""Maximum unsent bytes of a connection in the kernel, not counting data in flight."""
MAX_MESSAGE_BYTES = 8 << 20
"""Maximum size of a WebSocket message. A larger one closes the connection."""


def add_command(commands: Any) -> None:
    """Register the command and its flags."""
    parser = commands.add_parser(
        "serve",
        help="serve the video API over HTTP",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "models",
        nargs="*",
        default=[],
        metavar="MODEL",
        help="local folders, Hugging Face hub ids, or the built-in nano, nano-mid or nano-base; "
        "each model has its own workers, and requests without a model use the first one "
        f"(default: {DEFAULT_MODEL})",
    )
    parser.alias = "--model"
    add_model_names(parser)
    parser.add_config_flag()
    add_log_flags(parser)
    add_server_flags(parser)
    add_options(parser.add_argument_group("connections and requests"), EdgeOptions)
    add_options(parser.add_argument_group("object storage"), ObjectOptions)
    add_outbound_flags(parser)
    add_device_flags(parser)
    add_worker_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal stops the process. Returns the exit status."""
    from helios_serve.entrypoints.http.connections import most_connections
    from helios_serve.entrypoints.http.origins import parse_allowed

    os.environ.pop(variable_of("--api-key"), None)  # child processes must not inherit it
    models = served_models(arguments)
    check_tls(arguments.ssl_certfile, arguments.ssl_keyfile)
    check_outputs(arguments)
    for model in models.paths.values():
        check_model(model, worker_groups(arguments, model), executor_kind(arguments))
    edge = read_flags(arguments, EdgeOptions)
    # Both fail before anything is loaded.
    parse_allowed(edge.allowed_hosts, edge.allowed_origins)
    most_connections(edge.max_connections)
    show_server_logs(arguments.log_format)
    with ExitStack() as opened:
        lease = hold_lease(arguments, opened)  # before clients can connect
        listener = listen(arguments.host, arguments.port)
        opened.callback(listener.close)
        Ballast(arguments.data_dir).release_if_full()
        keys = KeyStore(arguments.data_dir, fixed=arguments.api_key)
        opened.enter_context(closing(keys))
        keys.check()
        check_exposure(listener, keys, is_allowed=arguments.without_keys)
        app = make_server(arguments, models, opened, keys, lease)
        lifecycle = app.state.lifecycle
        lifecycle.address = address_of(listener, is_secure=arguments.ssl_certfile is not None)
        print(f"helios-serve: {lifecycle.address}/v1/videos", flush=True)
        serve_http(app, arguments, edge, listener)
    if lifecycle.failure is not None:
        raise HeliosError(lifecycle.failure)
    return 0


def serve_http(
    app: "Starlette", arguments: argparse.Namespace, edge: EdgeOptions, listener: socket.socket
) -> None:
    """Serve the application on the listener until a signal stops it."""
    from helios_serve.entrypoints.http.connections import HttpConfig
    from helios_serve.entrypoints.http.server import HttpServer

    config = HttpConfig(
        app,
        edge,
        ws_max_size=MAX_MESSAGE_BYTES,
        ws_per_message_deflate=False,  # video does not compress further
        ws_ping_timeout=CLIENT_SECONDS,
        timeout_graceful_shutdown=CLOSE_SECONDS,
        ssl_certfile=arguments.ssl_certfile,
        ssl_keyfile=arguments.ssl_keyfile,
    )
    # uvicorn raises the signal again after its shutdown, which would kill the process early.
    signal.signal(signal.SIGTERM, lambda *_: None)
    HttpServer(config, app.state.lifecycle, arguments.drain_timeout).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """Bind the port before anything is loaded, so that an error is reported at once.

    Raises InvalidRequestError if the address is not available.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise InvalidRequestError(
            f"got --host {host} --port {port}, expected a free address: {error.strerror}",
            param="port",
        ) from error
    listener.setblocking(False)
    # Connections inherit this from their listener. Without it, the kernel buffers megabytes of
    # unsent video, and a slow reader looks as if it had received them.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
    return listener


def check_exposure(listener: socket.socket, keys: KeyStore, *, is_allowed: bool) -> None:
    """Raise InvalidRequestError if the server is reachable from other machines without API keys.

    `is_allowed` turns the error into a warning.
    """
    host = listener.getsockname()[0]
    if not keys.ring().is_open or ip_address(host.partition("%")[0]).is_loopback:
        return
    if is_allowed:
        logger.warning("no API keys: anyone who can connect to %s can use this server", host)
    else:
        raise InvalidRequestError(
            f"got --host {host} without any API key, expected 127.0.0.1; create a key with "
            "`helios-serve keys create`, or add --without-keys",
            param="host",
        )


def hold_lease(arguments: argparse.Namespace, opened: ExitStack) -> Lease | None:
    """Return a lease on the data folder, if one is asked for, when nobody else holds the folder.

    It is renewed until `opened` is closed. This process ends if it is lost.
    """
    if arguments.data_lease is None:
        return None
    # While modules load, the thread that renews a lease would hardly run.
    for module in LOADED_FIRST:
        import_module(module)
    lease = wait_for_lease(arguments.data_dir, arguments.data_lease)
    opened.enter_context(kept(lease, end_process))
    logger.info("holding lease %d of %s", lease.token, arguments.data_dir)
    return lease


def make_server(
    arguments: argparse.Namespace,
    models: ServedModels,
    opened: ExitStack,
    keys: KeyStore,
    lease: Lease | None = None,
) -> "Starlette":
    """Return the application that the flags configure. Its resources are closed with `opened`."""
    from helios_serve.service.tenants import TenantsFile
    from helios_serve.store.cell import claim_cell
    from helios_serve.store.objects.video_objects import open_objects
    from helios_serve.store.video_store import VideoStore

    tenants = None if arguments.tenants is None else TenantsFile(arguments.tenants)
    media = make_media(arguments)
    store = VideoStore(arguments.data_dir, lease=lease)
    opened.callback(store.close)
    cell = claim_cell(arguments.data_dir, arguments.cell)
    objects = open_objects(store, read_flags(arguments, ObjectOptions))
    webhooks = make_webhooks(arguments, store)
    logger.info("loading %s", ", ".join(models.paths))
    # Imported last: torch takes seconds to import, and errors must be immediate.
    from helios_serve.engine.requests.async_engine import AsyncEngine
    from helios_serve.entrypoints.http.app import make_app
    from helios_serve.metrics import Metrics
    from helios_serve.spans import open_spans

    metrics = Metrics()
    spans = None
    if arguments.otlp_traces_endpoint is not None:
        spans = open_spans(arguments.otlp_traces_endpoint)
        opened.callback(spans.close)
    cores = launch_models(arguments, models, opened, tenants, metrics, spans)
    config = ServerConfig(
        retention=arguments.retention,
        max_disk=arguments.max_disk,
        session_grace=arguments.session_grace,
        edge=read_flags(arguments, EdgeOptions),
        exit_without_workers=arguments.exit_without_workers,
        loras=dict(arguments.lora_modules),
        public_metrics=arguments.public_metrics,
        access_log=not arguments.no_access_log,
        cell=cell,
        kept_chunks=arguments.endless_window,
        idle=arguments.endless_idle,
    )
    return make_app(
        AsyncEngine(cores, store, metrics, models.aliases, spans=spans),
        store,
        arguments.data_dir,
        keys,
        config,
        tenants=tenants,
        media=media,
        webhooks=webhooks,
        objects=objects,
    )


def launch_models(
    arguments: argparse.Namespace,
    models: ServedModels,
    opened: ExitStack,
    tenants: "TenantsFile | None",
    metrics: "Metrics",
    spans: "Spans | None",
) -> "dict[str, EngineCore]":
    """Return an engine for each model, by name. Their workers are starting."""
    from helios_serve.engine.launch import launch
    from helios_serve.engine.observe.trace import Trace

    scheduling = scheduling_config(arguments)
    if tenants is not None:
        scheduling = msgspec.structs.replace(
            scheduling, tenants=tenants.first.tenants, tenant_defaults=tenants.first.defaults
        )
    trace = None
    if arguments.trace is not None:
        trace = opened.enter_context(Trace(arguments.trace))
    return {
        name: launch(
            model,
            worker_groups(arguments, model),
            executor_kind(arguments),
            name=name,
            ray_address=arguments.ray_address,
            scheduling=scheduling,
            trace=trace,
            metrics=metrics,
            spans=spans,
        )
        for name, model in models.paths.items()
    }
