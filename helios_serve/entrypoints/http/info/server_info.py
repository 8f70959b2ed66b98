"""Routes that describe the server: models, health, version and metrics."""

import asyncio
import time

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from helios_serve import __version__
from helios_serve.engine.observe.gauges import update
from helios_serve.engine.requests.async_engine import AsyncEngine
from helios_serve.entrypoints.http.operations import JSON_TYPE, Operation
from helios_serve.entrypoints.http.responses import json_response
from helios_serve.service.errors import ApiError
from helios_serve.service.lifecycle import Lifecycle
from helios_serve.service.protocol import Model, ModelList


class ServerInfo:
    """Handlers for the server's models and state."""

    def __init__(self, engine: AsyncEngine, lifecycle: Lifecycle) -> None:
        self.engine = engine
        self.lifecycle = lifecycle
        self.started = int(time.time())

    @property
    def operations(self) -> tuple[Operation, ...]:
        return (
            Operation(
                "GET",
                "/v1/models",
                self.models,
                "List the served models",
                ModelList,
                statuses=(),
            ),
            Operation(
                "GET",
                "/v1/models/{model:path}",
                self.model,
                "Retrieve a model",
                Model,
                statuses=(404,),
            ),
            Operation(
                "GET",
                "/health",
                self.health,
                "Check whether every model can generate videos",
                JSON_TYPE,
                statuses=(503,),
            ),
            Operation(
                "GET",
                "/liveness",
                self.liveness,
                "Check whether the server responds",
                JSON_TYPE,
                statuses=(),
            ),
            Operation(
                "GET",
                "/version",
                self.version,
                "Get the server's version",
                JSON_TYPE,
                statuses=(),
            ),
            Operation(
                "GET",
                "/metrics",
                self.metrics,
                "Get metrics in Prometheus' text format",
                "text/plain",
                statuses=(),
            ),
        )

    async def models(self, request: Request) -> Response:  # noqa: ARG002
        """List the served models."""
        return json_response(ModelList(data=[self._model(name) for name in self.engine.cores]))

    async def model(self, request: Request) -> Response:
        """Return a model. Raises ApiError 404 if it is not served."""
        name = request.path_params["model"]
        if name not in self.engine.cores:
            served = ", ".join(self.engine.cores)
            raise ApiError(
                404,
                f"got model {name!r}, expected one of: {served}",
                code="model_not_found",
                param="model",
            )
        return json_response(self._model(name))

    async def health(self, request: Request) -> Response:  # noqa: ARG002
        """Return 200 if every model can generate videos, or will once its workers have started.

        Return 503 with the reason if a model has failed, or the server is shutting down.
        """
        failures = self.engine.failures
        ready = {name: stats.workers for name, stats in (await self.engine.stats()).items()}
        status = "draining" if self.lifecycle.is_draining else "failed" if failures else "ok"
        body = {"status": status, "workers": ready, "errors": failures}
        return JSONResponse(body, 200 if status == "ok" else 503)

    async def liveness(self, request: Request) -> Response:  # noqa: ARG002
        """Return 200 while the process responds."""
        return JSONResponse({"status": "ok"})

    async def version(self, request: Request) -> Response:  # noqa: ARG002
        """Return the server's version."""
        return JSONResponse({"version": __version__})

    async def metrics(self, request: Request) -> Response:  # noqa: ARG002
        """Return the current metrics in Prometheus' text format."""
        metrics = self.engine.metrics
        metrics.event_loop_tasks.set(len(asyncio.all_tasks()))
        update(metrics, await self.engine.stats(), await self.engine.workers())
        return Response(metrics.render(), media_type=CONTENT_TYPE_LATEST)

    def _model(self, name: str) -> Model:
        return Model(id=name, created=self.started)
