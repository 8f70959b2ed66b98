"""Runs a load on a simulated fleet, and returns what `helios-serve bench` returns of a real one."""

import asyncio
import gc
import random
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from helios_serve import __version__
from helios_serve.benchmarks.load.clock import LoadClock
from helios_serve.benchmarks.load.generator import LoadGenerator
from helios_serve.benchmarks.load.request import SessionRequest
from helios_serve.benchmarks.load.workload import Workload
from helios_serve.benchmarks.measure.load_run import ClientLoad, LoadRun, window_of
from helios_serve.benchmarks.measure.result import result_of
from helios_serve.benchmarks.measure.server_metrics import GaugeSample
from helios_serve.benchmarks.simulator.cell import Cell, CellCounts
from helios_serve.benchmarks.simulator.costs import CostModel, DeviceCosts
from helios_serve.benchmarks.simulator.failures import Failures
from helios_serve.benchmarks.simulator.fleet import Fleet
from helios_serve.benchmarks.simulator.target import SimulatedTarget
from helios_serve.benchmarks.simulator.virtual_time import run_virtual
from helios_serve.engine.observe.trace import Trace
from helios_serve.model_config import HeliosConfig
from helios_serve.options.benchmarks import ReportOptions, TargetOptions
from helios_serve.options.engine import EngineConfig
from helios_serve.options.scheduling import BatchLimits, SchedulingConfig, TenantConfig
from helios_serve.options.simulation import FleetOptions
from helios_serve.options.workers import WorkerConfig
from helios_serve.size import Size

SAMPLES = 200
"""Times at which the workers are looked at, for the report."""
GC_THRESHOLDS = (100_000, 50, 100)
DATE = "19700101-000000"
"""Virtual time begins here: a result does not depend on the day on which it is computed."""


class SimulatedModel(NamedTuple):
    """The model whose videos are made, and the size of those that ask for none."""

    name: str
    config: HeliosConfig
    size: Size


class FleetPlan(NamedTuple):
    """A fleet: the costs of its devices, the workers of each cell, and its options."""

    costs: DeviceCosts
    workers: tuple[WorkerConfig, ...]
    options: FleetOptions
    limits: BatchLimits


class Simulated(NamedTuple):
    """A run, the sessions that it asked for, what the fleet did, and the CPU time of simulating."""

    run: LoadRun
    sent: list[SessionRequest]
    counts: CellCounts
    plan: FleetPlan
    cpu_seconds: float


def simulate(
    workload: Workload, model: SimulatedModel, plan: FleetPlan, report: ReportOptions
) -> Simulated:
    """Run a load on a fleet in virtual time.

    The same arguments give the same result. Raises InvalidRequestError for options that contradict
    each other, and AssertionError if the scheduler's accounts disagree at the end.
    """
    started = time.process_time()
    with ExitStack() as files:
        files.enter_context(rare_collections())
        made = run_virtual(simulated(workload, model, plan, report, files))
    return made._replace(cpu_seconds=time.process_time() - started)


@contextmanager
def rare_collections() -> Iterator[None]:
    """Collect garbage rarely: a long run keeps millions of objects, none of them in a cycle."""
    thresholds = gc.get_threshold()
    gc.collect()
    gc.set_threshold(*GC_THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)


async def simulated(
    workload: Workload,
    model: SimulatedModel,
    plan: FleetPlan,
    report: ReportOptions,
    files: ExitStack,
) -> Simulated:
    """Run a load in the running loop's virtual time."""
    options, seed = plan.options, workload.options.seed
    failures = Failures.of(options, options.cells * len(plan.workers))
    clock = LoadClock(asyncio.get_running_loop().time)
    fleet = Fleet(
        tuple(cells_of(workload, model, plan, report, clock, files)),
        report_lag=options.report_lag,
    )
    target = SimulatedTarget(
        fleet, clock, model.size, max_lead_chunks=options.max_lead, pacing=options.pacing
    )
    load = LoadGenerator(workload, target, clock, timeout=TargetOptions().session_timeout)
    samples: list[GaugeSample] = []
    async with happening(fleet, failures, plan, seed, samples, clock, workload):
        await load.run()
    for cell in fleet.cells:
        cell.check()
    for record in load.records:
        record.is_counted = record.intended >= report.warmup_seconds
    ended = max((record.ended or 0.0 for record in load.records), default=0.0)
    run = LoadRun(
        workload,
        TargetOptions(model=model.name),
        msgspec.structs.replace(report, num_gpus=report.num_gpus or fleet.workers),
        "simulated",
        load.records,
        window_of(workload, load.records, report.warmup_seconds, None),
        ended,
        ClientLoad([], 0.0, 0.0, None),
        server_version=__version__,
        samples=samples,
    )
    return Simulated(run, load.sent, fleet.counts(), plan, 0.0)


def cells_of(
    workload: Workload,
    model: SimulatedModel,
    plan: FleetPlan,
    report: ReportOptions,
    clock: LoadClock,
    files: ExitStack,
) -> Iterator[Cell]:
    """Yield the cells of a fleet."""
    options = plan.options
    config = EngineConfig(
        workers=plan.workers,
        max_failed_starts=None,
        scheduling=scheduling(workload, plan, report),
    )
    trace = None
    if options.trace is not None:
        loop = asyncio.get_running_loop()
        trace = files.enter_context(Trace(Path(options.trace), loop.time, None))
    costs = plan.costs
    if options.start_seconds is not None:
        costs = msgspec.structs.replace(costs, start_seconds=options.start_seconds)
    for number in range(options.cells):
        jitter = f"{workload.options.seed} jitter {number}"
        yield Cell(
            CostModel(costs, model.config),
            config,
            now=clock.now,
            deliver_seconds=options.deliver_seconds,
            observers=() if trace is None else (trace.of(f"cell {number}"),),
            jitter=random.Random(jitter) if options.jitter else None,
            host_cores=options.host_cores,
            host_workers=options.host_workers,
        )


def scheduling(workload: Workload, plan: FleetPlan, report: ReportOptions) -> SchedulingConfig:
    """Return the scheduler's configuration: the tenants' weights, and the player's buffer."""
    return SchedulingConfig(
        **msgspec.structs.asdict(plan.limits),
        realtime_share=plan.options.realtime_share,
        start_buffer=report.start_buffer,
        tenants={
            tenant.name: TenantConfig(weight=workload.tenants.weight(tenant.name))
            for tenant in workload.tenants.all
        },
    )


@asynccontextmanager
async def happening(
    fleet: Fleet,
    failures: Failures,
    plan: FleetPlan,
    seed: int,
    samples: list[GaugeSample],
    clock: LoadClock,
    workload: Workload,
) -> AsyncIterator[None]:
    """Let things go wrong at their times while the block runs, and sample the fleet's gauges."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    restart = plan.options.start_seconds
    if restart is None:
        restart = plan.costs.start_seconds
    for incident in failures.workers:
        loop.call_at(start + incident.time, fleet.lose_workers, incident.numbers, "killed")
    for incident in failures.drains:
        loop.call_at(start + incident.time, fleet.drain_workers, incident.numbers)
    for incident in failures.cells:
        for number in incident.numbers:
            loop.call_at(start + incident.time, fleet.cells[number].die, restart)
    last = workload.options.duration or workload.requests[-1].intended
    tasks = [asyncio.create_task(sample(fleet, clock, max(1.0, last / SAMPLES), samples))]
    if failures.mtbf is not None:
        chance = random.Random(f"{seed} deaths")
        tasks.append(asyncio.create_task(fleet.lose_at_random(failures.mtbf, chance)))
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def sample(fleet: Fleet, clock: LoadClock, period: float, samples: list[GaugeSample]) -> None:
    """Note the fleet's gauges every `period` seconds until cancelled, by the server's names."""
    while True:
        await asyncio.sleep(period)
        ready = used = total = 0
        for cell in fleet.cells:
            if cell.is_up:
                ready += sum(worker.is_ready for worker in cell.executor.workers.values())
                stats = cell.core.scheduler.stats()
                used, total = used + stats.used_blocks, total + stats.total_blocks
        values = {"worker_up": ready, "history_blocks_used": used, "history_blocks_total": total}
        samples.append(
            GaugeSample(clock.now(), {name: float(value) for name, value in values.items()})
        )


def simulated_result(made: Simulated, *, command: str) -> dict[str, Any]:
    """Return the result in the form of a benchmark's, with a block on the simulation."""
    result = result_of(made.run, command=command, date=DATE)
    costs, counts = made.plan.costs, made.counts
    result["helios"]["simulation"] = {
        "device": costs.name,
        "source": costs.source,
        "origin": costs.origin,
        "errors": msgspec.to_builtins(costs.errors),
        "cells": made.plan.options.cells,
        "workers": made.plan.options.cells * len(made.plan.workers),
        "counts": counts._asdict(),
    }
    return result | {"backend": "simulated", "endpoint_type": "simulated"}


def simulation_lines(made: Simulated) -> Iterator[str]:
    """Yield what a simulated result says in addition to a measured one."""
    costs, counts, options = made.plan.costs, made.counts, made.plan.options
    workers = options.cells * len(made.plan.workers)
    if costs.source == "roofline":
        yield f"ROOFLINE, NOT MEASURED: {costs.name}, {costs.origin}"
    else:
        yield f"costs of {costs.name}: {costs.origin}"
        for lane, error in costs.errors.items():
            yield f"  {lane}: held-out error {error.mape:.1%} of {error.n}, bias {error.bias:+.1%}"
    busy = counts.denoise_seconds / (workers * max(made.run.seconds, 1e-9))
    yield (
        f"{workers} workers in {options.cells} cells: {counts.plans} plans, {counts.decodes} "
        f"chunks decoded, {counts.deaths} deaths, {counts.preemptions} preemptions, "
        f"denoising {busy:.0%} of the time"
    )
    if made.cpu_seconds > 0:
        yield (
            f"simulated {made.run.seconds:.0f} s in {made.cpu_seconds:.1f} CPU-seconds, "
            f"{counts.plans / made.cpu_seconds:.0f} plans a CPU-second"
        )
