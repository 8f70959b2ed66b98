"""Simulated fleets for tests: costs as plain seconds, and loads that are given in full."""

from collections.abc import Sequence
from typing import Any

from helios_serve.benchmarks.load.request import SessionRequest
from helios_serve.benchmarks.load.tenants import LoadTenants
from helios_serve.benchmarks.load.workload import Workload
from helios_serve.benchmarks.simulator.costs import DeviceCosts, PlanCosts, TaskCosts
from helios_serve.benchmarks.simulator.simulation import (
    FleetPlan,
    Simulated,
    SimulatedModel,
    simulate,
)
from helios_serve.options.benchmarks import LoadOptions, ReportOptions
from helios_serve.options.scheduling import BatchLimits
from helios_serve.options.simulation import FleetOptions
from helios_serve.options.workers import ROLES, Role, WorkerConfig
from helios_serve.size import Size
from tests.support.scheduling import CONFIG

MODEL = SimulatedModel("model", CONFIG, Size(640, 384))


def seconds_of(
    *, encode: float = 0.0, step: float = 0.0, decode: float = 0.0, sharing: float = 0.0
) -> DeviceCosts:
    """Costs that do not depend on sizes: seconds of a task, and of a step of one session."""
    return DeviceCosts(
        name="test",
        source="measured",
        origin="a test",
        plan=PlanCosts(session=step),
        encode=TaskCosts(overhead=encode),
        decode=TaskCosts(overhead=decode),
        sharing=sharing,
        start_seconds=5.0,
        num_blocks=60_000,
        text_rows=10_000,
    )


def load_of(starts: Sequence[float], **fields: Any) -> Workload:
    """Sessions that are to start at `starts`; `fields` are those of each request."""
    requests = tuple(
        SessionRequest(prompt="a dog", timestamp=1000 * start, **{"num_frames": 99} | fields)
        for start in starts
    )
    return Workload(requests, LoadTenants(), LoadOptions())


def run_load(
    workload: Workload,
    costs: DeviceCosts,
    *,
    model: SimulatedModel = MODEL,
    workers: int = 1,
    roles: tuple[Role, ...] = ROLES,
    limits: BatchLimits | None = None,
    **options: Any,
) -> Simulated:
    """Simulate a load on cells of `workers`; `options` are those of the fleet."""
    plan = FleetPlan(
        costs,
        (WorkerConfig(roles=roles),) * workers,
        FleetOptions(**options),
        limits or BatchLimits(),
    )
    return simulate(workload, model, plan, ReportOptions())
