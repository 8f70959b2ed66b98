"""The routes that tell of the server itself."""

import asyncio
import time

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from helios_serve import __version__
from helios_serve.engine.observe.gauges import update
from helios_serve.engine.requests.async_engine import AsyncEngine
from helios_serve.entrypoints.http.responses import json_response
from helios_serve.service.errors import ApiError
from helios_serve.service.lifecycle import Lifecycle
from helios_serve.service.protocol import Model, ModelList


class ServerInfo:
    """Which models are served, and whether all is well."""

    def __init__(self, engine: AsyncEngine, lifecycle: Lifecycle) -> None:
        self.engine = engine
        self.lifecycle = lifecycle
        self.started = int(time.time())

    @property
    def routes(self) -> list[Route]:
        return [
            Route("/v1/models", self.models),
            Route("/v1/models/{model:path}", self.model),
            Route("/health", self.health),
            Route("/liveness", self.liveness),
            Route("/version", self.version),
            Route("/metrics", self.metrics),
        ]

    async def models(self, request: Request) -> Response:  # noqa: ARG002
        return json_response(
            ModelList(data=[self._model(name) for name in self.engine.models.cores])
        )

    async def model(self, request: Request) -> Response:
        name = request.path_params["model"]
        if name not in self.engine.models.cores:
            served = ", ".join(self.engine.models.cores)
            raise ApiError(
                404,
                f"got model {name!r}, expected one of: {served}",
                code="model_not_found",
                param="model",
            )
        return json_response(self._model(name))

    async def health(self, request: Request) -> Response:  # noqa: ARG002
        """200 if every model can make videos now or soon, 503 with the reason if one cannot, or if
        the server is shutting down."""
        failures = self.engine.models.failures
        ready = {name: stats.workers for name, stats in (await self.engine.models.stats()).items()}
        status = "draining" if self.lifecycle.is_draining else "failed" if failures else "ok"
        body = {"status": status, "workers": ready, "errors": failures}
        return JSONResponse(body, 200 if status == "ok" else 503)

    async def liveness(self, request: Request) -> Response:  # noqa: ARG002
        """The process answers."""
        return JSONResponse({"status": "ok"})

    async def version(self, request: Request) -> Response:  # noqa: ARG002
        return JSONResponse({"version": __version__})

    async def metrics(self, request: Request) -> Response:  # noqa: ARG002
        """Counts and times for Prometheus, as of this moment."""
        metrics = self.engine.metrics
        metrics.event_loop_tasks.set(len(asyncio.all_tasks()))
        update(metrics, await self.engine.models.stats(), await self.engine.models.workers())
        return Response(metrics.render(), media_type=CONTENT_TYPE_LATEST)

    def _model(self, name: str) -> Model:
        return Model(id=name, created=self.started)
