"""Measures the cost of the scheduler's decisions, with a fake executor.

    python benchmarks/micro/scheduler.py [--output results.json] [--plot growth.png]

Sessions of 20 tenants in all tiers and several sizes. Each worker keeps two plans, as in service;
sessions that end are replaced by new ones. First, `schedule()` alone is timed on 64 workers. Then
plans per second of CPU time are counted, with all that the scheduler does between two plans, for
several numbers of workers. Under overload all blocks are taken and as many sessions wait. At last
the whole engine is stepped on simulated workers, which finish plans, encode and decode tasks. Their
times vary: if all were equal, workers would finish together, and one step would handle them all.
Steps count that receive something; in the others the engine looks whether it is time for a plan.
"""

import argparse
import gc
import itertools
import json
import platform
import random
import time
import tracemalloc
from pathlib import Path
from typing import NamedTuple

import msgspec

from helios_serve.benchmarks.simulator.costs import CostModel
from helios_serve.benchmarks.simulator.devices import device_costs
from helios_serve.benchmarks.simulator.executor import SimulatedExecutor
from helios_serve.benchmarks.simulator.virtual_time import SteppedClock
from helios_serve.core.history_manager import HistoryManager
from helios_serve.core.scheduler import Scheduler
from helios_serve.core.session import Session
from helios_serve.engine.loop.engine_core import EngineCore
from helios_serve.messages import EncodedPrompt, TensorData
from helios_serve.model_config import Geometry
from helios_serve.model_executor.loader import open_checkpoint
from helios_serve.options.engine import EngineConfig
from helios_serve.options.sampling import SamplingParams
from helios_serve.options.scheduling import SchedulingConfig, ServiceTier, TenantConfig
from helios_serve.options.workers import ROLES, WorkerConfig
from helios_serve.video_request import VideoRequest

WORKERS, QUEUE_DEPTH = 64, 2
LIVE = (100, 300, 1000, 3000, 10000)
AIMS = {1000: 1e-3, 10000: 5e-4}
PER_WORKER = 4
"""Sessions for which a worker has room while plans are counted."""
MEMORY_AIM_MB = 200
ENGINE_WORKERS, ENGINE_AIM = 32, 6e3
SPREAD = tuple(0.8 + 0.4 * index / 64 for index in range(65))
"""The time of each plan and task of a simulated worker is multiplied by one of these at random."""


class Case(NamedTuple):
    """A number of workers, whether more sessions wait, and the plans per CPU second to reach."""

    workers: int
    is_overloaded: bool
    aim: float | None = None


CASES = (Case(1, False), Case(64, False, 12e3), Case(64, True, 12e3), Case(1000, False, 5e3))
SIZES = ((640, 384), (384, 640), (256, 256), (832, 448))
PROMPT = EncodedPrompt("x", TensorData(b"", (60, 4096), "bfloat16"))
TIERS: tuple[ServiceTier, ...] = ("default", "default", "default", "flex", "priority")


class Load:
    """A scheduler with a constant number of live sessions, `room` of which fit on each worker."""

    def __init__(
        self, live: int, *, workers: int = WORKERS, room: int | None = None, seed: int = 0
    ) -> None:
        self.cpu_seconds = 0.0
        self.rng = random.Random(seed)
        self.numbers = itertools.count()
        self.config = open_checkpoint("BestWishYsh/Helios-Distilled", "dummy").config
        tenants = {f"tenant-{i}": TenantConfig(weight=1 + i % 4) for i in range(20)}
        scheduling = SchedulingConfig(max_queued=live, tenants=tenants)
        self.scheduler = Scheduler(scheduling, time.monotonic)
        self.live = live
        largest = max(HistoryManager.peak_blocks(Geometry(h, w)) for w, h in SIZES)
        most = 2 + 2 * live // workers if room is None else room
        for index in range(workers):
            self.scheduler.add_worker(f"worker-{index}", largest * most, 64 * most)
        self.refill()

    def refill(self) -> None:
        while len(self.scheduler.sessions) < self.live:
            width, height = self.rng.choice(SIZES)
            frames = 33 * self.rng.randint(1, 12)
            request = VideoRequest(
                request_id=f"session-{next(self.numbers)}",
                prompt="x",
                params=SamplingParams(width=width, height=height, num_frames=frames),
                tenant=f"tenant-{self.rng.randrange(20)}",
                tier=self.rng.choice(TIERS),
            )
            params = request.resolve(self.config)
            session = Session(request, params, self.config, arrival=time.monotonic())
            session.prompts.learn(PROMPT)
            started = time.thread_time()
            self.scheduler.add_session(session)
            self.cpu_seconds += time.thread_time() - started

    def run(self, calls: int) -> list[float]:
        """Return the seconds of each of `calls` calls of schedule(), with workers taking turns."""
        spent = []
        workers = itertools.cycle(self.scheduler.workers.values())
        for worker in itertools.islice(workers, calls):
            if len(worker.plans) >= QUEUE_DEPTH:
                self.scheduler.update_from_output(worker)
                self.refill()
            started = time.perf_counter()
            self.scheduler.schedule(worker)
            spent.append(time.perf_counter() - started)
        return spent

    def plans_per_cpu_second(self, plans: int) -> float:
        """Return plans with steps per CPU second, without the cost of creating sessions."""
        done, self.cpu_seconds = 0, 0.0
        workers = itertools.cycle(self.scheduler.workers.values())
        while done < plans:
            worker = next(workers)
            started = time.thread_time()
            if len(worker.plans) >= QUEUE_DEPTH:
                self.scheduler.update_from_output(worker)
            done += bool(self.scheduler.schedule(worker).scheduled_steps)
            self.cpu_seconds += time.thread_time() - started
            self.refill()
        return done / self.cpu_seconds


class EngineSteps(NamedTuple):
    """Per second of CPU time, the simulated workers' included: steps of the engine's loop that
    received something, all steps, plans, and decoded chunks.
    """

    steps: float
    all_steps: float
    plans: float
    chunks: float


class EngineLoad:
    """An engine that always has two videos of four chunks for each of its simulated workers."""

    def __init__(self, workers: int) -> None:
        config = open_checkpoint("BestWishYsh/Helios-Distilled", "dummy").config
        costs = msgspec.structs.replace(
            device_costs("h100", config), residuals=dict.fromkeys(ROLES, SPREAD)
        )
        clock = SteppedClock()
        model = CostModel(costs, config)
        self.executor = SimulatedExecutor(model, clock, jitter=random.Random(0))
        engine = EngineConfig(workers=(WorkerConfig(),) * workers)
        self.core = EngineCore(self.executor, config, engine, clock=clock.now)
        self.live = 2 * workers
        self.numbers = itertools.count()

    def refill(self) -> None:
        while len(self.core.decode_stage.assemblers) < self.live:
            params = SamplingParams(num_frames=120, steps=(1, 1, 1))
            name = f"video-{next(self.numbers)}"
            self.core.add_request(VideoRequest(request_id=name, prompt="x", params=params))

    def run(self, steps: int) -> EngineSteps:
        """Step the engine, without the cost of creating sessions."""
        before = self.executor.done.copy()
        receiving, spent = 0, 0.0
        for _ in range(steps):
            self.refill()
            started = time.thread_time()
            self.core.step(1.0)
            spent += time.thread_time() - started
            receiving += self.executor.last_received > 0
        done = self.executor.done - before
        counts = (receiving, steps, done["denoise"], done["decode"])
        return EngineSteps(*(count / spent for count in counts))


def engine_steps(workers: int, steps: int) -> EngineSteps:
    """Print and return what an engine does per second of CPU time."""
    load = EngineLoad(workers)
    load.run(steps // 4)
    gc.collect()
    gc.freeze()
    found = load.run(steps)
    print(
        f"engine steps per CPU s, {workers} workers: {found.steps:.0f} of {found.all_steps:.0f}, "
        f"{found.plans:.0f} plans and {found.chunks:.0f} chunks   {ENGINE_AIM:.0f}",
        flush=True,
    )
    return found


def block_memory_mb(workers: int) -> float:
    """Return the megabytes of block ids of workers with room for PER_WORKER sessions each."""
    largest = max(HistoryManager.peak_blocks(Geometry(h, w)) for w, h in SIZES)
    tracemalloc.start()
    managers = [HistoryManager(largest * PER_WORKER) for _ in range(workers)]
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(managers) == workers
    return taken / 1e6


def count_plans(plans: int) -> list[dict[str, float | None]]:
    """Print and return plans per CPU second of all cases."""
    rows: list[dict[str, float | None]] = []
    print(f"{'workers':>8} {'overload':>8} {'plans / CPU s':>14}   aim")
    for workers, is_overloaded, aim in CASES:
        live = workers * PER_WORKER * (2 if is_overloaded else 1)
        load = Load(live, workers=workers, room=PER_WORKER if is_overloaded else 2 * PER_WORKER)
        load.plans_per_cpu_second(plans // 4)
        gc.collect()
        gc.freeze()
        rate = load.plans_per_cpu_second(plans)
        rows.append({"workers": workers, "overload": is_overloaded, "plans": rate, "aim": aim})
        print(f"{workers:>8} {is_overloaded!s:>8} {rate:>14.0f}   {aim or ''}", flush=True)
    return rows


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def draw(rows: list[dict[str, float]], path: Path) -> None:
    """Plot percentiles over the number of live sessions."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for key in ("p50_ms", "p99_ms"):
        axes.loglog(
            [row["live"] for row in rows], [row[key] for row in rows], marker="o", label=key[:3]
        )
    axes.set_xlabel("live sessions on 64 workers")
    axes.set_ylabel("one schedule(), ms")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=6400)
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    arguments = parser.parse_args()
    counts = count_plans(arguments.calls)
    engine = engine_steps(ENGINE_WORKERS, 3 * arguments.calls)
    memory = block_memory_mb(1000)
    print(f"block ids of 1,000 workers: {memory:.0f} MB   {MEMORY_AIM_MB}")
    rows = []
    print(f"{'live':>6} {'p50 ms':>8} {'p99 ms':>8} {'max ms':>8}   aim for p99")
    for live in LIVE:
        load = Load(live)
        load.run(arguments.calls // 4)
        gc.collect()
        gc.freeze()
        spent = load.run(arguments.calls)
        p50, p99, most = (1e3 * percentile(spent, share) for share in (0.5, 0.99, 1.0))
        rows.append({"live": live, "p50_ms": p50, "p99_ms": p99, "max_ms": most})
        aim = f"{1e3 * AIMS[live]:g} ms" if live in AIMS else ""
        print(f"{live:>6} {p50:>8.3f} {p99:>8.3f} {most:>8.3f}   {aim}")
    if arguments.output is not None:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        machine = f"{platform.machine()} CPU, Python {platform.python_version()}"
        result = {"machine": machine, "workers": WORKERS, "rows": rows}
        result |= {"plans_per_cpu_second": counts, "block_ids_mb": memory}
        result |= {"engine_steps_per_cpu_second": engine._asdict()}
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    if arguments.plot is not None:
        draw(rows, arguments.plot)


if __name__ == "__main__":
    main()
