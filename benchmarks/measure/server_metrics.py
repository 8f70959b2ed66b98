"""Samples the server's Prometheus metrics while a load runs."""

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from helios_serve.benchmarks.load.clock import LoadClock
from helios_serve.benchmarks.targets.server import Server
from helios_serve.benchmarks.targets.target import SessionFailedError, SessionRefusedError

PERIOD = 1.0
COUNTS = ("_total", "_count", "_sum")
GAUGES = ("num_sessions", "history_blocks", "worker_up", "num_tasks_waiting", "num_requests")
"""Gauges that are sampled: ours, and those of vLLM's servers."""

Values = dict[str, float]


class GaugeSample(msgspec.Struct):
    """The server's gauges at one time, in seconds since the start of the load."""

    at: float
    values: Values


class MetricsSampler:
    """Reads /metrics before, during and after a run. A server without it has no samples."""

    def __init__(self, server: Server, clock: LoadClock, tenant: str) -> None:
        self.server = server
        self.clock = clock
        self.tenant = tenant
        self.samples: list[GaugeSample] = []
        self._before: Values | None = None

    async def begin(self) -> None:
        self._before = await self._counts()

    async def run(self) -> None:
        """Sample the gauges until cancelled, or until the server gives none."""
        while (text := await self._read()) is not None:
            values = dict(self._select(text, GAUGES, starts=True))
            self.samples.append(GaugeSample(self.clock.now(), values))
            await asyncio.sleep(PERIOD)

    async def end(self) -> Values | None:
        """Return the increase of each count since `begin`; None without metrics."""
        after = await self._counts()
        if after is None or self._before is None:
            return None
        grown = {name: value - self._before.get(name, 0.0) for name, value in after.items()}
        return {name: value for name, value in grown.items() if value}

    async def _counts(self) -> Values | None:
        text = await self._read()
        return None if text is None else dict(self._select(text, COUNTS, starts=False))

    async def _read(self) -> str | None:
        try:
            async with self.server.request("GET", "/metrics", self.tenant) as answer:
                return await answer.text()
        except (SessionFailedError, SessionRefusedError, UnicodeDecodeError):
            return None

    @staticmethod
    def _select(text: str, parts: tuple[str, ...], *, starts: bool) -> Iterator[tuple[str, float]]:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                plain = sample.name.partition(":")[2] or sample.name
                if plain.startswith(parts) if starts else plain.endswith(parts):
                    yield sample.name + labels_text(sample.labels), sample.value


def labels_text(labels: Mapping[str, Any]) -> str:
    inside = ",".join(f'{name}="{value}"' for name, value in sorted(labels.items()))
    return f"{{{inside}}}" if inside else ""
