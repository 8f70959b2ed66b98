"""Measures the client's own delay: runs the load against a server that answers at once."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from helios_serve.benchmarks.load.clock import LoadClock
from helios_serve.benchmarks.load.generator import LoadGenerator
from helios_serve.benchmarks.load.workload import Workload
from helios_serve.benchmarks.measure.metrics import session_metrics
from helios_serve.benchmarks.measure.record import SessionRecord
from helios_serve.benchmarks.measure.statistics import quantile
from helios_serve.benchmarks.targets.realtime import RealtimeTarget
from helios_serve.benchmarks.targets.server import connected
from helios_serve.benchmarks.targets.target import Target
from helios_serve.benchmarks.targets.videos import VideosTarget
from helios_serve.errors import HeliosError
from helios_serve.options.benchmarks import LoadOptions, TargetOptions

MIN_RATE, MAX_RATE = 20.0, 200.0
"""Sessions per second of the check: the load's own rate, within these bounds."""
SECONDS = 2.0
MODULE = "helios_serve.benchmarks.targets.null_server"


async def client_floor(workload: Workload, options: TargetOptions) -> float:
    """Return the p99 of the time to the first chunk, in seconds, against the null server."""
    records = await run_against_null(check_workload(workload), options)
    times = [session_metrics(record, 0).ttfc for record in records]
    found = [time for time in times if time is not None]
    if len(found) < len(times):
        failed = next(record for record in records if record.outcome != "completed")
        raise HeliosError(f"the self-check failed: {failed.error}; --no-self-check skips it")
    return quantile(found, 0.99)


async def run_against_null(workload: Workload, options: TargetOptions) -> list[SessionRecord]:
    """Run a workload against a null server in a process of its own."""
    async with null_server() as url:
        local = msgspec.structs.replace(options, base_url=url, timing=None)
        async with connected(local, workload.tenants) as server:
            clock = LoadClock()
            target: Target = VideosTarget(server, "media", clock)
            if options.endpoint == "/v1/realtime/video":
                target = RealtimeTarget(server, clock)
            load = LoadGenerator(workload, target, clock, timeout=60.0)
            await load.run()
            return load.records


def check_workload(workload: Workload) -> Workload:
    """Return a load of the same shapes at about the same rate, evenly spread over SECONDS."""
    last = workload.requests[-1].intended
    rate = len(workload.requests) / last if last and not workload.is_closed else MIN_RATE
    rate = min(max(rate, MIN_RATE), MAX_RATE)
    requests = [
        msgspec.structs.replace(
            workload.requests[index % len(workload.requests)],
            timestamp=1000 * index / rate,
            stop_after_ms=None,
            switches=(),
        )
        for index in range(int(SECONDS * rate))
    ]
    return Workload(tuple(requests), workload.tenants, LoadOptions())


@asynccontextmanager
async def null_server() -> AsyncIterator[str]:
    """Run a null server, and yield its URL."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", MODULE),
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONSAFEPATH": "1"},
    )
    assert process.stdout is not None
    try:
        url = (await process.stdout.readline()).decode().strip()
        if not url:
            raise HeliosError(
                "the null server of the self-check did not start; --no-self-check skips it"
            )
        yield url
    finally:
        process.terminate()
        await process.wait()
