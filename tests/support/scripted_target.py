"""A target whose sessions follow a script, in the event loop's time."""

import asyncio
from collections.abc import Callable, Sequence

from helios_serve.benchmarks.load.clock import LoadClock
from helios_serve.benchmarks.load.generator import LoadGenerator
from helios_serve.benchmarks.load.request import SessionRequest
from helios_serve.benchmarks.load.tenants import LoadTenants
from helios_serve.benchmarks.load.workload import Workload
from helios_serve.benchmarks.measure.record import ChunkRecord, SessionRecord
from helios_serve.benchmarks.simulator.virtual_time import run_virtual
from helios_serve.options.benchmarks import LoadOptions

Script = Callable[[SessionRecord, float], Sequence[float] | Exception]
"""Returns when a session's chunks arrive, in seconds after sending, or how the session ends. Its
arguments are the session's record and the time of sending.
"""


class ScriptedTarget:
    """Sessions of one chunk of 24 frames for each of the script's times."""

    def __init__(self, script: Script) -> None:
        loop = asyncio.get_running_loop()
        self.clock = LoadClock(loop.time)
        self.left: list[int] = []
        self._script = script

    async def run(self, request: SessionRequest, record: SessionRecord) -> None:  # noqa: ARG002
        record.sent = self.clock.now()
        script = self._script(record, record.sent)
        if isinstance(script, Exception):
            raise script
        record.accepted = record.sent
        for time in script:
            await self.clock.sleep_until(record.sent + time)
            record.chunks.append(ChunkRecord(self.clock.now(), 24, 0))

    async def leave(self, record: SessionRecord) -> None:
        self.left.append(record.id)


def run_script(
    script: Script,
    *,
    starts: Sequence[float],
    timeout: float = 1000.0,
    stop_after_ms: float | None = None,
    stop_at: float | None = None,
    **options: float,
) -> tuple[LoadGenerator, ScriptedTarget]:
    """Run sessions that are intended at `starts`, in virtual time."""
    requests = tuple(
        SessionRequest(
            prompt="p", num_frames=24, timestamp=1000 * start, stop_after_ms=stop_after_ms
        )
        for start in starts
    )
    workload = Workload(requests, LoadTenants(), LoadOptions(**options))  # type: ignore[arg-type]

    async def work() -> tuple[LoadGenerator, ScriptedTarget]:
        target = ScriptedTarget(script)
        load = LoadGenerator(workload, target, target.clock, timeout=timeout)
        if stop_at is not None:
            asyncio.get_running_loop().call_later(stop_at, load.stop, "the test stops it")
        await load.run()
        return load, target

    return run_virtual(work())
