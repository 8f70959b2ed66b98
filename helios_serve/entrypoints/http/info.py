"""Routes that describe the server and report a tenant's usage."""

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from helios_serve import __version__
from helios_serve.engine.requests.async_engine import AsyncEngine
from helios_serve.entrypoints.http.authentication import tenant_of
from helios_serve.entrypoints.http.operations import JSON_TYPE, Operation
from helios_serve.entrypoints.http.responses import json_response
from helios_serve.errors import InvalidRequestError
from helios_serve.options.prompts import example_prompts
from helios_serve.options.sampling import default_size, has_random_weights
from helios_serve.service.errors import ApiError
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
from helios_serve.service.videos.lora_modules import LoraModules
from helios_serve.size import suggested_sizes
from helios_serve.store.usage import DayUsage, seconds_to_midnight
from helios_serve.store.user_files import UserFileStore
from helios_serve.store.video_store import VideoStore

DEFAULT_DAYS, MAX_DAYS = 30, 366
EPOCH = date(1970, 1, 1)
DATE: Json = {"type": "string", "format": "date"}


class ServerInfo:
    """Handlers for the server's models and version."""

    def __init__(self, engine: AsyncEngine, loras: LoraModules) -> None:
        self.engine = engine
        self.loras = loras
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
                "/version",
                self.version,
                "Get the server's version",
                JSON_TYPE,
                statuses=(),
            ),
        )

    async def models(self, request: Request) -> Response:
        """List the served models, and the LoRA adapters that the tenant may use."""
        return json_response(ModelList(data=list(self._models(request).values())))

    async def model(self, request: Request) -> Response:
        """Return a model. Raises ApiError 404 if it is not served."""
        name, models = request.path_params["model"], self._models(request)
        if name not in models:
            served = ", ".join(models)
            raise ApiError(
                404,
                f"got model {name!r}, expected one of: {served}",
                code="model_not_found",
                param="model",
            )
        return json_response(models[name])

    async def version(self, request: Request) -> Response:  # noqa: ARG002
        """Return the server's version."""
        return JSONResponse({"version": __version__})

    def _models(self, request: Request) -> dict[str, Model]:
        """Return the models and adapters of the tenant by id. An adapter modifies any model, and
        the default one when a request names it as its `model`.
        """
        models = self.engine.models
        if not models.cores:
            return {}
        found = {name: self._model(name, name, parent=None) for name in models.names}
        base = models.default_model
        for name in self.loras.names(models.tenant(tenant_of(request))):
            found.setdefault(name, self._model(name, base, parent=base))
        return found

    def _model(self, name: str, base: str, parent: str | None) -> Model:
        models = self.engine.models
        options = models.worker_config(base)
        sizes = suggested_sizes(default_size(options.model), models.model_config(base))
        return Model(
            id=name,
            created=self.started,
            root=name,
            parent=parent,
            sizes=[str(size) for size in sizes],
            random_weights=has_random_weights(options.model, options.load_format),
            prompts=list(example_prompts(options.model)),
        )


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
