"""The route that tells a tenant what it has asked for and got."""

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from helios_serve.engine.requests.async_engine import AsyncEngine
from helios_serve.entrypoints.http.authentication import tenant_of
from helios_serve.entrypoints.http.responses import json_response
from helios_serve.errors import InvalidRequestError
from helios_serve.service.protocol import FramesQuota, Usage, UsageCounts, UsageDay
from helios_serve.store.usage import DayUsage, seconds_to_midnight
from helios_serve.store.video_store import VideoStore

DEFAULT_DAYS, MAX_DAYS = 30, 366
EPOCH = date(1970, 1, 1)


class UsageApi:
    """Handlers over the sender's own usage."""

    def __init__(self, engine: AsyncEngine, store: VideoStore) -> None:
        self.engine = engine
        self.store = store

    @property
    def routes(self) -> list[Route]:
        return [Route("/v1/usage", self.usage)]

    async def usage(self, request: Request) -> Response:
        """From `start_date` to `end_date`, both included: today and 29 days before, if left out."""
        tenant, now = tenant_of(request), time.time()
        today = datetime.fromtimestamp(now, UTC).date()
        end = asked_date(request, "end_date", today)
        start = asked_date(request, "start_date", end - timedelta(days=DEFAULT_DAYS - 1))
        if not 0 <= (end - start).days < MAX_DAYS:
            raise InvalidRequestError(
                f"got {start} to {end}, expected 1 to {MAX_DAYS} days", param="start_date"
            )
        days = await asyncio.to_thread(self.store.usage, tenant, start, end)
        current = await asyncio.to_thread(self.store.usage, tenant, today, today)
        most = self.engine.models.tenant(tenant).frames_per_day
        granted = sum(day.granted for day in current)
        return json_response(
            Usage(
                tenant=tenant,
                start_date=start,
                end_date=end,
                days=[as_told(day) for day in days],
                totals=totals(days),
                quota=FramesQuota(
                    frames_per_day=most,
                    frames_left=None if most is None else max(0, most - granted),
                    resets_in_seconds=int(seconds_to_midnight(now)),
                ),
            )
        )


def asked_date(request: Request, name: str, default: date) -> date:
    text = request.query_params.get(name)
    if text is None:
        return default
    try:
        return max(EPOCH, datetime.strptime(text, "%Y-%m-%d").date())
    except ValueError as error:
        raise InvalidRequestError(
            f"got {name} {text!r}, expected YYYY-MM-DD in UTC", param=name
        ) from error


def as_told(day: DayUsage) -> UsageDay:
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
