"""Route of a tenant's usage."""

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta

from starlette.requests import Request
from starlette.responses import Response

from helios_serve.engine.requests.async_engine import AsyncEngine
from helios_serve.entrypoints.http.authentication import tenant_of
from helios_serve.entrypoints.http.operations import Operation
from helios_serve.entrypoints.http.responses import json_response
from helios_serve.errors import InvalidRequestError
from helios_serve.service.protocol import FramesQuota, Json, Usage, UsageCounts, UsageDay
from helios_serve.store.usage import DayUsage, seconds_to_midnight
from helios_serve.store.video_store import VideoStore

DEFAULT_DAYS, MAX_DAYS = 30, 366
EPOCH = date(1970, 1, 1)
DATE: Json = {"type": "string", "format": "date"}


class UsageApi:
    """Handlers for the tenant's own usage."""

    def __init__(self, engine: AsyncEngine, store: VideoStore) -> None:
        self.engine = engine
        self.store = store

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
        most = self.engine.tenant(tenant).frames_per_day
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
            )
        )


def date_query(request: Request, name: str, default: date) -> date:
    """Return a date parameter, at least 1970-01-01. Raises InvalidRequestError if it is
    malformed.
    """
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
