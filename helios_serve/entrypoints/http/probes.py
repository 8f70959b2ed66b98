"""Routes for monitors and load balancers: health, load and metrics."""

import asyncio
from collections.abc import Mapping, Sequence

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from helios_serve.engine.loop.engine_core import EngineStats
from helios_serve.engine.loop.worker_handle import WorkerReport
from helios_serve.engine.requests.async_engine import AsyncEngine
from helios_serve.entrypoints.http.operations import JSON_TYPE, Operation
from helios_serve.entrypoints.http.responses import json_response
from helios_serve.errors import without_paths
from helios_serve.metrics import Metrics
from helios_serve.service.lifecycle import Lifecycle
from helios_serve.service.protocol import ServerLoad
from helios_serve.service.videos.uploader import Uploader


class Probes:
    """Handlers for the state of the server."""

    def __init__(
        self, engine: AsyncEngine, lifecycle: Lifecycle, uploader: Uploader | None = None
    ) -> None:
        self.engine = engine
        self.lifecycle = lifecycle
        self.uploader = uploader

    @property
    def operations(self) -> tuple[Operation, ...]:
        return (
            Operation(
                "GET",
                "/health",
                self.health,
                "Check whether every model can generate videos",
                JSON_TYPE,
                statuses=(503,),
            ),
            *(
                Operation(
                    method,
                    "/ping",
                    self.health,
                    "Check the server as /health does, at Amazon SageMaker's path",
                    JSON_TYPE,
                    statuses=(503,),
                )
                for method in ("GET", "POST")
            ),
            Operation(
                "GET",
                "/load",
                self.load,
                "Get the number of unfinished videos, for load balancers",
                ServerLoad,
                statuses=(),
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
                "/metrics",
                self.metrics,
                "Get metrics in Prometheus' text format",
                "text/plain",
                statuses=(),
            ),
        )

    async def health(self, request: Request) -> Response:  # noqa: ARG002
        """Return 200 if every model has a worker that can generate videos.

        Return 503 with the reason while workers start, if a model has failed, if none of its
        workers can be started now, and during shutdown. `failed_workers` counts those that will be
        started again. `object_store` says what is still to be uploaded and deleted; an object store
        that fails does not make the server unhealthy.
        """
        failures = self.engine.models.failures
        stats = await self.engine.models.stats()
        outages = {name: item.outage.reason for name, item in stats.items() if item.outage}
        if self.lifecycle.is_draining:
            status = "draining"
        elif failures:
            status = "failed"
        elif outages:
            status = "no_workers"
        else:
            is_ready = all(
                name in stats and stats[name].workers for name in self.engine.models.cores
            )
            status = "ok" if is_ready else "starting"
        errors = {name: without_paths(text) for name, text in (outages | failures).items()}
        body: dict[str, object] = {
            "status": status,
            "workers": {name: item.workers for name, item in stats.items()},
            "failed_workers": {name: item.failed_workers for name, item in stats.items()},
            "errors": errors,
        }
        if self.uploader is not None:
            pending = await self.uploader.pending()
            body["object_store"] = pending._asdict() | {"last_error": self.uploader.last_error}
        return JSONResponse(body, 200 if status == "ok" else 503)

    async def load(self, request: Request) -> Response:  # noqa: ARG002
        """Return the number of unfinished videos, waiting ones included, as vLLM's /load does."""
        stats = (await self.engine.models.stats()).values()
        load = sum(item.scheduler.waiting + item.scheduler.running for item in stats)
        return json_response(ServerLoad(server_load=load))

    async def liveness(self, request: Request) -> Response:  # noqa: ARG002
        """Return 200 while the process responds."""
        return JSONResponse({"status": "ok"})

    async def metrics(self, request: Request) -> Response:  # noqa: ARG002
        """Return the current metrics in Prometheus' text format."""
        metrics = self.engine.metrics
        metrics.event_loop_tasks.set(len(asyncio.all_tasks()))
        if self.uploader is not None:
            await self.uploader.pending()  # sets its gauges
        update_gauges(metrics, await self.engine.models.stats(), await self.engine.models.workers())
        return Response(metrics.render(), media_type=CONTENT_TYPE_LATEST)


def update_gauges(
    metrics: Metrics,
    stats: Mapping[str, EngineStats],
    workers: Mapping[str, Sequence[WorkerReport]],
) -> None:
    """Set all gauges, by model; those of workers that are gone are removed."""
    for model, item in stats.items():
        scheduler, encoding, decoding = item.scheduler, item.encoding, item.decoding
        metrics.failed_workers.labels(model).set(item.failed_workers)
        metrics.outage_seconds.labels(model).set(item.outage.seconds if item.outage else 0.0)
        for state, number in (("waiting", scheduler.waiting), ("running", scheduler.running)):
            metrics.sessions.labels(model, state).set(number)
        for kind, number in (("encode", encoding), ("decode", decoding)):
            metrics.tasks.labels(model, kind).set(number)
        metrics.blocks_used.labels(model).set(scheduler.used_blocks)
        metrics.blocks_total.labels(model).set(scheduler.total_blocks)
        metrics.preemptions.set(model, scheduler.preemptions)
        metrics.deadline_misses.set(model, scheduler.deadline_misses)
    metrics.workers.clear()
    metrics.worker_info.clear()
    for model, reports in workers.items():
        for report in reports:
            is_up = report.state == "ready"
            metrics.workers.labels(model, report.worker_id).set(is_up)
            if report.info.device:
                labels = (model, report.worker_id, *msgspec.structs.astuple(report.info))
                metrics.worker_info.labels(*labels).set(1)
