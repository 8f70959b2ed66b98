"""`helios-serve serve`: the video API over HTTP."""

import argparse
import signal
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from helios_serve.config import DEFAULT_MODEL, SchedulingConfig
from helios_serve.entrypoints.model_flags import (
    add_device_flags,
    add_worker_flags,
    worker_groups,
)
from helios_serve.entrypoints.outside_flags import (
    add_outside_flags,
    make_media,
    make_webhooks,
)
from helios_serve.errors import InvalidRequestError
from helios_serve.logger import show_all_logs

if TYPE_CHECKING:
    from starlette.applications import Starlette

EPILOG = """\
examples:
  helios-serve serve
  helios-serve serve BestWishYsh/Helios-Distilled --port 8000 --workers 2
  helios-serve serve /models/helios --ray-address auto --workers 1:encode+decode --workers 7:denoise
"""
DRAIN_SECONDS = 30


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
        metavar="MODEL",
        help="local folders, hub ids, or the built-in nano, nano-mid, nano-base; each has workers "
        f"of its own, and the first is the default ({DEFAULT_MODEL})",
    )
    server = parser.add_argument_group("server")
    server.add_argument("--host", default="127.0.0.1", help="127.0.0.1, this machine only")
    server.add_argument("--port", type=int, default=8000, help="8000")
    server.add_argument(
        "--data-dir",
        type=Path,
        default=Path("helios-data"),
        metavar="FOLDER",
        help="jobs and videos, which outlive the server (helios-data)",
    )
    server.add_argument("--max-queued", type=int, metavar="N", help="videos that may wait (1024)")
    server.add_argument(
        "--trace", type=Path, metavar="FILE.json", help="what each worker did when, for Perfetto"
    )
    add_outside_flags(parser)
    add_device_flags(parser)
    add_worker_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal comes."""
    import uvicorn

    show_all_logs()
    listener = listen(arguments.host, arguments.port)
    with ExitStack() as opened:
        opened.callback(listener.close)
        app = make_server(arguments, opened)
        config = uvicorn.Config(
            app,
            loop="uvloop",
            http="httptools",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=DRAIN_SECONDS,
            server_header=False,
        )
        host, port = listener.getsockname()[:2]
        # uvicorn shuts down at the signal and then repeats it, which would end us half-way.
        signal.signal(signal.SIGTERM, lambda *_: None)
        print(f"helios-serve: http://{host}:{port}/v1/videos", flush=True)
        uvicorn.Server(config).run(sockets=[listener])
    return 0


def listen(host: str, port: int) -> socket.socket:
    """The port is taken before anything is loaded, so that one in use is told at once."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise InvalidRequestError(
            f"got --host {host} --port {port}, expected an address that is free: {error.strerror}",
            param="port",
        ) from error
    listener.setblocking(False)
    return listener


def make_server(arguments: argparse.Namespace, opened: ExitStack) -> "Starlette":
    """The application that the flags ask for; what it needs is closed with `opened`."""
    # Imported here: torch takes seconds, and --help and bad flags should answer at once.
    from helios_serve.engine.async_engine import AsyncEngine
    from helios_serve.engine.launch import ExecutorKind, launch
    from helios_serve.engine.trace import Trace
    from helios_serve.entrypoints.openai.app import make_app
    from helios_serve.metrics import Metrics
    from helios_serve.store.video_store import VideoStore

    scheduling = SchedulingConfig()
    if arguments.max_queued is not None:
        scheduling = msgspec.structs.replace(scheduling, max_queued=arguments.max_queued)
    store = VideoStore(arguments.data_dir)
    opened.callback(store.close)
    media = make_media(arguments)
    webhooks = make_webhooks(arguments, store)
    trace = None
    if arguments.trace is not None:
        trace = opened.enter_context(Trace(arguments.trace))
    metrics = Metrics()
    default: ExecutorKind = "ray" if arguments.ray_address else "local"
    cores = {}
    for model in arguments.models or [DEFAULT_MODEL]:
        cores[model] = launch(
            model,
            worker_groups(arguments, model),
            arguments.executor or default,
            ray_address=arguments.ray_address,
            scheduling=scheduling,
            trace=trace,
            metrics=metrics,
        )
    return make_app(
        AsyncEngine(cores, store, metrics),
        store,
        arguments.data_dir,
        media=media,
        webhooks=webhooks,
    )
