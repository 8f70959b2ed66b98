"""The ASGI application: routes, middleware, error handlers and lifespan."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute

from helios_serve.engine.requests.async_engine import AsyncEngine
from helios_serve.entrypoints.http.access import AccessLog, RequestSpans, request_ids
from helios_serve.entrypoints.http.authentication import Authentication
from helios_serve.entrypoints.http.batches.batches import BatchApi
from helios_serve.entrypoints.http.batches.files import FileApi
from helios_serve.entrypoints.http.bodies import BodyLimit, BodyLimits
from helios_serve.entrypoints.http.cells import CellHeader
from helios_serve.entrypoints.http.info import ServerInfo, UsageApi
from helios_serve.entrypoints.http.live.events import EventsApi
from helios_serve.entrypoints.http.live.hls import HlsApi
from helios_serve.entrypoints.http.live.realtime import RealtimeApi
from helios_serve.entrypoints.http.operations import HasOperations, OpenApi, routes_of
from helios_serve.entrypoints.http.origins import CrossOrigin, OriginGuard, parse_allowed
from helios_serve.entrypoints.http.paths import RootPath
from helios_serve.entrypoints.http.playground.page import Playground
from helios_serve.entrypoints.http.probes import Probes
from helios_serve.entrypoints.http.responses import handle_error
from helios_serve.entrypoints.http.videos.content import ContentApi
from helios_serve.entrypoints.http.videos.videos import CharacterApi, VideoApi
from helios_serve.errors import HeliosError
from helios_serve.options.server import ServerConfig
from helios_serve.service.batches.batch_runner import BatchRunner
from helios_serve.service.control import ControlServer
from helios_serve.service.errors import ApiError
from helios_serve.service.housekeeping import Housekeeper
from helios_serve.service.ids import Ids
from helios_serve.service.key_cache import KeyCache
from helios_serve.service.lifecycle import Lifecycle
from helios_serve.service.media.references import References
from helios_serve.service.media.uploads import Spool
from helios_serve.service.outbound.outbound import Outbound
from helios_serve.service.rate_limits import RateLimits
from helios_serve.service.realtime.sessions import RealtimeConfig, RealtimeSessions
from helios_serve.service.tenants import TenantsFile
from helios_serve.service.videos.finished_files import FinishedFiles
from helios_serve.service.videos.lora_modules import LoraModules
from helios_serve.service.videos.request_builder import RequestBuilder
from helios_serve.service.videos.uploader import Uploader
from helios_serve.service.videos.videos import Videos
from helios_serve.service.webhooks.webhooks import Webhooks
from helios_serve.store.disk import Disk
from helios_serve.store.keys import KeyStore
from helios_serve.store.objects.video_objects import VideoObjects
from helios_serve.store.service_tables import ServiceTables
from helios_serve.store.video_store import VideoStore

HANDLED = (ApiError, HeliosError, HTTPException, ClientDisconnect)
"""Exceptions with a response of their own; `AccessLog` answers others."""


Lifespan = Callable[[Starlette], AbstractAsyncContextManager[None]]


def lifespan_of(
    parts: Sequence[AbstractAsyncContextManager[object] | None],
    keys: KeyCache,
    tables: ServiceTables,
) -> Lifespan:
    """A lifespan that enters `parts` in order and exits them in reverse; None is skipped."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:  # noqa: ARG001
        async with AsyncExitStack() as opened:
            for part in parts:
                if part is not None:
                    await opened.enter_async_context(part)
            yield
        await keys.write_uses()
        tables.close()

    return lifespan


def make_app(
    engine: AsyncEngine,
    store: VideoStore,
    folder: Path,
    keys: KeyStore,
    config: ServerConfig | None = None,
    *,
    tenants: TenantsFile | None = None,
    media: Outbound | None = None,
    webhooks: Webhooks | None = None,
    objects: VideoObjects | None = None,
) -> Starlette:
    """Return the application that serves one engine, and runs it during its lifespan.

    `folder` is the store's folder, which also holds the other tables and files. `media` fetches
    references from other hosts; without it, none can be fetched. `engine` must not be running yet.
    Call `app.state.lifecycle.close()` when the server shuts down, so that open streams end.
    """
    config = config or ServerConfig()
    lifecycle = Lifecycle(engine, config.exit_without_workers)
    sessions = RealtimeSessions(engine, store, RealtimeConfig(grace=config.session_grace))
    key_cache = KeyCache(keys)
    tables, loras = ServiceTables(folder, guard=store.guard), LoraModules(config.loras)
    disk, ids = Disk(folder, config.max_disk), Ids(config.cell)
    finished = FinishedFiles(folder / "finished", store)
    keep = config.retention
    videos = Videos(engine, store, finished, disk, lifecycle, keep, ids=ids, objects=objects)
    uploader = None if objects is None else Uploader(objects, store, finished, engine.metrics)
    keeper = Housekeeper(videos, tables, disk, keep, idle=config.idle)
    files = FileApi(tables.files, engine, disk, ids)
    references = References(
        folder / "incoming", outbound=media, find_file=files.path_of, reserve=disk.reserve
    )
    builder = RequestBuilder(engine, references, loras, ids=ids, kept_chunks=config.kept_chunks)
    runner = BatchRunner(videos, builder, tables)
    parts: tuple[HasOperations, ...] = (
        VideoApi(videos, builder, RateLimits(engine, store)),
        CharacterApi(),
        ContentApi(videos),
        HlsApi(videos),
        EventsApi(videos, lifecycle.closing),
        files,
        BatchApi(runner, files, disk),
        UsageApi(engine, store, tables.files),
        ServerInfo(engine, builder.loras),
        Probes(engine, lifecycle, uploader),
    )
    operations = [operation for part in parts for operation in part.operations]
    operations += OpenApi(operations, config.edge.root_path).operations
    realtime = RealtimeApi(videos, builder, sessions)
    reloading = None if tenants is None else tenants.reloading(engine)
    inner = (uploader, ControlServer(engine, folder), reloading, sessions, runner, keeper)
    lifespan = lifespan_of((references, webhooks, engine, lifecycle, *inner), key_cache, tables)
    routes = [*routes_of(operations), *realtime.routes, *Playground().routes]
    layers = middleware_of(routes, engine, key_cache, config, disk)
    caught = dict.fromkeys(HANDLED, handle_error)
    app = Starlette(routes=routes, middleware=layers, exception_handlers=caught, lifespan=lifespan)
    app.router.redirect_slashes = False
    app.state.lifecycle = lifecycle
    return app


def middleware_of(
    routes: Sequence[BaseRoute],
    engine: AsyncEngine,
    keys: KeyCache,
    config: ServerConfig,
    disk: Disk,
) -> list[Middleware]:
    """Return the middleware, outermost first."""
    edge = config.edge
    spool = Spool(disk.folder / "incoming", disk.check_room)
    hosts, origins = parse_allowed(edge.allowed_hosts, edge.allowed_origins)
    return [
        request_ids(),
        Middleware(RootPath, root_path=edge.root_path),
        *([] if engine.spans is None else [Middleware(RequestSpans, routes, engine.spans)]),
        Middleware(AccessLog, routes, engine.metrics.http, is_logged=config.access_log),
        *([Middleware(CrossOrigin, origins=origins)] if edge.allowed_origins else ()),
        *([Middleware(CellHeader, cell=config.cell)] if config.cell is not None else ()),
        Middleware(OriginGuard, keys=keys, hosts=hosts, origins=origins),
        Middleware(Authentication, keys, public_metrics=config.public_metrics),
        Middleware(BodyLimit, limits=BodyLimits(text=edge.max_request_text, spool=spool)),
    ]
