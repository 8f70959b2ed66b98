"""What a tenant may still request, as headers with OpenAI's names."""

import asyncio
import time
from datetime import UTC, datetime

from helios_serve.engine.requests.async_engine import AsyncEngine
from helios_serve.store.usage import seconds_to_midnight
from helios_serve.store.video_store import VideoStore


class RateLimits:
    """Headers for the limits that a tenant has. A limit that is not set has no headers.

    `requests` are unfinished videos (`max_sessions`), `frames` those of the day (`frames_per_day`).
    """

    def __init__(self, engine: AsyncEngine, store: VideoStore) -> None:
        self.engine = engine
        self.store = store

    async def headers(self, tenant: str, model: str | None) -> dict[str, str]:
        """Return the headers of a response to a request for a new video."""
        limits = self.engine.models.tenant(tenant, model)
        headers: dict[str, str] = {}
        if limits.max_sessions is not None:
            used = self.engine.count_unfinished(tenant, model)
            headers |= headers_of("requests", limits.max_sessions, used)
        if limits.frames_per_day is not None:
            now = time.time()
            today = datetime.fromtimestamp(now, UTC).date()
            days = await asyncio.to_thread(self.store.usage, tenant, today, today)
            used = sum(day.granted for day in days)
            headers |= headers_of("frames", limits.frames_per_day, used)
            headers["x-ratelimit-reset-frames"] = f"{seconds_to_midnight(now):.0f}s"
        return headers


def headers_of(what: str, limit: int, used: int) -> dict[str, str]:
    return {
        f"x-ratelimit-limit-{what}": str(limit),
        f"x-ratelimit-remaining-{what}": str(max(0, limit - used)),
    }
