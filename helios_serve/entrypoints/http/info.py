"""Routes that describe the server and report a tenant's usage."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from helios_serve import __version__
from helios_serve.engine.loop.engine_core import EngineStats
from helios_serve.engine.loop.worker_pool import WorkerReport
from helios_serve.engine.requests.async_engine import AsyncEngine
from helios_serve.entrypoints.http.authentication import tenant_of
from helios_serve.entrypoints.http.operations import JSON_TYPE, Operation
from helios_serve.entrypoints.http.responses import json_response
from helios_serve.errors import InvalidRequestError, without_paths
from helios_serve.metrics import Metrics
from helios_serve.service.errors import ApiError
from helios_serve.service.lifecycle import Lifecycle
from helios_serve.service.protocol import (
    FilesQuota,
    FramesQuota,
    Json,
    Model,
    ModelList,
    Usage,
    UsageCounts,
    UsageDay,
)
from helios_serve.store.usage import DayUsage, seconds_to_midnight
from helios_serve.store.user_files import UserFileStore
from helios_serve.store.video_store import VideoStore

DEFAULT_DAYS, MAX_DAYS = 30, 366
EPOCH = date(1970, 1, 1)
DATE: Json = {"type": "string", "format": "date"}


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
        return json_response(
            ModelList(data=[self._model(name) for name in self.engine.models.cores])
        )

    async def model(self, request: Request) -> Response:
        """Return a model. Raises ApiError 404 if it is not served."""
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
        """Return 200 if every model can generate videos, or will once its workers have started.

        Return 503 with the reason if a model has failed, none of its workers can be started now, or
        the server is shutting down. `failed_workers` counts those that are to be started again.
        """
        failures = self.engine.models.failures
        stats = await self.engine.models.stats()
        outages = {name: item.outage.reason for name, item in stats.items() if item.outage}
        status = "draining" if self.lifecycle.is_draining else "failed" if failures else "ok"
        if status == "ok" and outages:
            status = "no_workers"
        errors = {name: without_paths(text) for name, text in (outages | failures).items()}
        body = {
            "status": status,
            "workers": {name: item.workers for name, item in stats.items()},
            "failed_workers": {name: item.failed_workers for name, item in stats.items()},
            "errors": errors,
        }
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
        update_gauges(metrics, await self.engine.models.stats(), await self.engine.models.workers())
        return Response(metrics.render(), media_type=CONTENT_TYPE_LATEST)

    def _model(self, name: str) -> Model:
        return Model(id=name, created=self.started)


class UsageApi:
    """Handlers for the tenant's own usage."""

    def __init__(self, engine: AsyncEngine, store: VideoStore, files: UserFileStore) -> None:
        self.engine = engine
        self.store = store
        self.files = files

    @property
    def operations(self) -> tuple[Operation, ...]:
        return (
            Operation(
                "GET",
                "/v1/usage",
                self.usage,
                "Retrieve your usage by day",
                Usage,
                query={"start_date": DATE, "end_date": DATE},
                statuses=(400,),
            ),
        )

    async def usage(self, request: Request) -> Response:
        """Return the usage from `start_date` to `end_date`, both inclusive, in UTC.

        By default, the period is the last 30 days. Raises InvalidRequestError for invalid dates.
        """
        tenant, now = tenant_of(request), time.time()
        today = datetime.fromtimestamp(now, UTC).date()
        end = date_query(request, "end_date", today)
        start = date_query(request, "start_date", end - timedelta(days=DEFAULT_DAYS - 1))
        if not 0 <= (end - start).days < MAX_DAYS:
            raise InvalidRequestError(
                f"got {start} to {end}, expected 1 to {MAX_DAYS} days", param="start_date"
            )
        days = await asyncio.to_thread(self.store.usage, tenant, start, end)
        current = await asyncio.to_thread(self.store.usage, tenant, today, today)
        stored = await asyncio.to_thread(self.files.bytes_of, tenant)
        limits = self.engine.models.tenant(tenant)
        most = limits.frames_per_day
        granted = sum(day.granted for day in current)
        return json_response(
            Usage(
                tenant=tenant,
                start_date=start,
                end_date=end,
                days=[usage_day(day) for day in days],
                totals=totals(days),
                quota=FramesQuota(
                    frames_per_day=most,
                    frames_left=None if most is None else max(0, most - granted),
                    resets_in_seconds=int(seconds_to_midnight(now)),
                ),
                files=FilesQuota(bytes=stored, max_file_bytes=limits.max_file_bytes),
            )
        )


def date_query(request: Request, name: str, default: date) -> date:
    text = request.query_params.get(name)
    if text is None:
        return default
    try:
        return max(EPOCH, datetime.strptime(text, "%Y-%m-%d").date())
    except ValueError as error:
        raise InvalidRequestError(
            f"got {name} {text!r}, expected YYYY-MM-DD in UTC", param=name
        ) from error


def usage_day(day: DayUsage) -> UsageDay:
    return UsageDay(
        day=day.day,
        requests=day.requests,
        frames=day.frames,
        device_seconds=day.device_seconds,
    )


def totals(days: Sequence[DayUsage]) -> UsageCounts:
    return UsageCounts(
        requests=sum(day.requests for day in days),
        frames=sum(day.frames for day in days),
        device_seconds=sum(day.device_seconds for day in days),
    )


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
        metrics.preemptions.labels(model).set(scheduler.preemptions)
        metrics.deadline_misses.labels(model).set(scheduler.deadline_misses)
    metrics.workers.clear()
    for model, reports in workers.items():
        for report in reports:
            is_up = report.state not in ("starting", "failed")
            metrics.workers.labels(model, report.worker_id).set(is_up)
