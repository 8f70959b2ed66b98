"""Runs a benchmark from end to end: self-check, warm-up and load."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec

from helios_serve.benchmarks.load.clock import LoadClock
from helios_serve.benchmarks.load.generator import LoadGenerator
from helios_serve.benchmarks.load.lag import LagMeter, memory_mib
from helios_serve.benchmarks.load.progress import ProgressLine
from helios_serve.benchmarks.load.request import SessionRequest
from helios_serve.benchmarks.load.self_check import client_floor
from helios_serve.benchmarks.load.workload import Workload
from helios_serve.benchmarks.measure.energy import EnergyMeter, local_counters
from helios_serve.benchmarks.measure.load_run import ClientLoad, LoadRun, window_of
from helios_serve.benchmarks.measure.metrics import session_metrics
from helios_serve.benchmarks.measure.record import SessionRecord
from helios_serve.benchmarks.measure.server_metrics import MetricsSampler
from helios_serve.benchmarks.targets.realtime import RealtimeTarget
from helios_serve.benchmarks.targets.server import Capabilities, Server, choose_timing, connected
from helios_serve.benchmarks.targets.target import Target
from helios_serve.benchmarks.targets.videos import VideosTarget
from helios_serve.errors import HeliosError
from helios_serve.options.benchmarks import LoadOptions, ReportOptions, TargetOptions, Timing

REALTIME = "/v1/realtime/video"


class Measured(NamedTuple):
    """A run, and the requests of its sessions in the order in which they were started."""

    run: LoadRun
    sent: list[SessionRequest]


async def measure_server(
    workload: Workload, options: TargetOptions, report: ReportOptions
) -> Measured:
    """Put load on a server, and return what was measured.

    After an interrupt it returns what was measured so far. Raises HeliosError if the server cannot
    be reached or fails the warm-up, and InvalidRequestError for options that do not fit it.
    """
    tenant = workload.requests[0].tenant
    async with connected(options, workload.tenants) as server:
        found = await server.wait_until_ready(tenant)
        timing = choose_timing(options, found)
        floor = None if report.no_self_check else await client_floor(workload, options)
        await warm_up(workload, target_of(server, timing, LoadClock()), options, report)
        alone = None
        if report.slo_scale is not None:
            alone = await time_alone(workload, target_of(server, timing, LoadClock()), options)
            workload = bounded(workload, alone, report.slo_scale)
        clock = LoadClock()
        sampler = MetricsSampler(server, clock, tenant)
        await sampler.begin()
        measured = await measure_target(
            workload,
            target_of(server, timing, clock),
            clock,
            options,
            report,
            timing=timing,
            sampler=sampler,
        )
        run = with_server(measured.run, found, await sampler.end(), floor)
        return Measured(run._replace(alone=alone), measured.sent)


def with_server(
    run: LoadRun, found: Capabilities, counts: dict[str, float] | None, floor: float | None
) -> LoadRun:
    client = run.client._replace(null_ttfc=floor)
    return run._replace(server_version=found.version, counts=counts, client=client)


def target_of(server: Server, timing: Timing, clock: LoadClock) -> Target:
    if server.options.endpoint == REALTIME:
        return RealtimeTarget(server, clock)
    return VideosTarget(server, timing, clock)


async def warm_up(
    workload: Workload, target: Target, options: TargetOptions, report: ReportOptions
) -> None:
    """Run uncounted sessions of the load's shapes, different ones first.

    Raises HeliosError if one of them fails, because the load would then measure errors.
    """
    shapes = {request.shape: request for request in workload.requests}
    chosen = [*shapes.values(), *workload.requests][: report.num_warmups]
    requests = tuple(
        msgspec.structs.replace(request, timestamp=0.0, stop_after_ms=None, switches=())
        for request in chosen
    )
    if not requests:
        return
    await run_all(Workload(requests, workload.tenants, LoadOptions()), target, options)


async def run_all(
    workload: Workload, target: Target, options: TargetOptions
) -> Sequence[SessionRecord]:
    """Run sessions that do not count as the load. Raises HeliosError if one of them fails."""
    load = LoadGenerator(workload, target, target.clock, timeout=options.session_timeout)
    async with interruptible(load):
        await load.run()
    check_warm_up(load.records)
    return load.records


def check_warm_up(records: Sequence[SessionRecord]) -> None:
    """Raise HeliosError unless all sessions were completed."""
    for record in records:
        if record.code == "interrupted":
            raise KeyboardInterrupt
        if record.outcome != "completed":
            reason = record.error or record.code
            raise HeliosError(f"a warm-up session ({record.shape}) {record.outcome}: {reason}")


async def time_alone(
    workload: Workload, target: Target, options: TargetOptions
) -> dict[str, float]:
    """Return the end-to-end latency of one session of each shape that runs alone.

    Raises HeliosError if one of them fails.
    """
    shapes = {request.shape: request for request in workload.requests}
    requests = tuple(
        msgspec.structs.replace(request, timestamp=0.0, stop_after_ms=None, switches=())
        for request in shapes.values()
    )
    alone = Workload(requests, workload.tenants, LoadOptions(users=1))
    records = await run_all(alone, target, options)
    return {record.shape: session_metrics(record, 0.0).e2el or 0.0 for record in records}


def bounded(workload: Workload, alone: Mapping[str, float], scale: float) -> Workload:
    """Bound the latency of each session by `scale` times that of its shape alone.

    Bounds from a trace are kept.
    """
    requests = tuple(
        request
        if request.slo_ms is not None
        else msgspec.structs.replace(request, slo_ms=1000 * scale * alone[request.shape])
        for request in workload.requests
    )
    return workload._replace(requests=requests)


async def measure_target(
    workload: Workload,
    target: Target,
    clock: LoadClock,
    options: TargetOptions,
    report: ReportOptions,
    *,
    timing: str,
    sampler: MetricsSampler | None = None,
) -> Measured:
    """Run the load against a target, and record this client's delay and the server's gauges."""
    load = LoadGenerator(workload, target, clock, timeout=options.session_timeout)
    lag = LagMeter(clock)
    energy = EnergyMeter(local_counters() if is_local(options) else ())
    watching = [lag.run(), energy.run()]
    if sampler is not None:
        watching.append(sampler.run())
    if not report.disable_tqdm:
        watching.append(ProgressLine(load, clock).run())
    async with interruptible(load), background(*watching):
        announce(workload)
        await load.run()
        seconds = clock.now()
    for record in load.records:
        record.is_counted = record.intended >= report.warmup_seconds
    stopped = seconds if load.stopped_because is not None else None
    run = LoadRun(
        workload,
        options,
        report,
        timing,
        load.records,
        window_of(workload, load.records, report.warmup_seconds, stopped),
        max((record.ended or 0.0 for record in load.records), default=0.0),
        ClientLoad(lag.lags, lag.cpu_share, memory_mib(), None),
        samples=[] if sampler is None else sampler.samples,
        stopped_because=load.stopped_because,
        energy=energy.energy(
            sum(each.frames for record in load.records for each in record.deliveries)
        ),
    )
    return Measured(run, load.sent)


def is_local(options: TargetOptions) -> bool:
    """Return whether the server runs on this machine, whose counters then include its energy."""
    host = options.host if options.base_url is None else urlsplit(options.base_url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def announce(workload: Workload) -> None:
    """Print that the load starts. From here on, an interrupt keeps what was measured."""
    last, users = workload.requests[-1].intended, workload.options.users
    load = f"{len(workload.requests)} sessions in {last:.0f} s"
    if users is not None:
        load = f"{users} users"
    print(f"the load starts: {load}", file=sys.stderr, flush=True)


@asynccontextmanager
async def background(*works: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run `works` while the block runs."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error


@asynccontextmanager
async def interruptible(load: LoadGenerator) -> AsyncIterator[None]:
    """Let the first Ctrl-C stop the load, so that what was measured is kept. A second one ends the
    program.
    """
    loop = asyncio.get_running_loop()

    def interrupt() -> None:
        loop.remove_signal_handler(signal.SIGINT)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("\ninterrupted: ending the sessions under way", file=sys.stderr)
        load.stop("interrupted by the user")

    loop.add_signal_handler(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        signal.signal(signal.SIGINT, signal.default_int_handler)
