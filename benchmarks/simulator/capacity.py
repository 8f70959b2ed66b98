"""How many live sessions a fleet carries, what they cost, and what failures do to them.

    python benchmarks/simulator/capacity.py [--gpus 1,4,16,64] [--sessions 500] [--folder FOLDER]

Simulates live sessions of the 14B model at 640x384 on H100s, in cells of up to 16 workers. They
come at random times, play as they are made, and stop a few chunks ahead of their viewers. The
capacity is the mean number of live sessions at which a share of all sessions that come plays
without a stall. Costs follow from datasheets and were never measured. Writes results.json and the
plots of docs/capacity.md; `--plots-only` draws them again.
"""

import argparse
import json
import math
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import msgspec

mpl.use("Agg")
from matplotlib import pyplot as plt

from helios_serve.benchmarks.load.workload import draw_workload
from helios_serve.benchmarks.measure.metrics import session_metrics
from helios_serve.benchmarks.simulator.costs import CostModel
from helios_serve.benchmarks.simulator.devices import device_costs
from helios_serve.benchmarks.simulator.simulation import (
    FleetPlan,
    Simulated,
    SimulatedModel,
    simulate,
)
from helios_serve.engine.launch import read_model_config
from helios_serve.model_config import CHUNK_FRAMES
from helios_serve.options.benchmarks import LoadOptions, ReportOptions, Tier
from helios_serve.options.scheduling import BatchLimits
from helios_serve.options.simulation import FleetOptions
from helios_serve.options.workers import WorkerConfig
from helios_serve.size import Size

MODEL = "BestWishYsh/Helios-Distilled"
CELL = 16
CHUNKS = 8
GPU_HOUR = 2.50
"""Assumed price of an hour of an H100, in dollars."""
TARGETS = (0.95, 0.99, 0.999)
BUFFERS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
DURATIONS = 12
"""Lengths of a session for which sessions come, at least: at first the fleet is empty."""


class FleetCase(NamedTuple):
    """What is simulated: GPUs, and how sessions and the scheduler differ from the base."""

    gpus: int = 4
    fps: int = 16
    steps: tuple[int, ...] = (1, 1, 1)
    tier: Tier = "default"
    buffer: float = 2.0
    batched_tokens: int = 12288


class Point(NamedTuple):
    """A load: live sessions per GPU, and the share of sessions without a stall, by buffer."""

    live: float
    stall_free: dict[float, float]
    refused: float
    ttfc_p95: float


class FleetRuns:
    """Simulates cases of the model, whose configuration is read once."""

    def __init__(self, sessions: int) -> None:
        self.sessions = sessions
        self.config = read_model_config(MODEL, "dummy")
        self.costs = device_costs("h100", self.config)

    def best(self, case: FleetCase) -> float:
        """Return live sessions per GPU if devices never waited and nothing was shared."""
        model = CostModel(self.costs, self.config)
        steps = model.steps(384, 640, 1)
        plans = sum(
            count * model.plan([stage], steps[stage]) for stage, count in enumerate(case.steps)
        )
        return CHUNK_FRAMES / case.fps / (plans + model.decode(384, 640))

    def run(self, case: FleetCase, live: float, **options: Any) -> Simulated:
        """Simulate Poisson arrivals with a mean of `live` sessions per GPU."""
        seconds = CHUNKS * CHUNK_FRAMES / case.fps
        number = max(self.sessions, round(DURATIONS * live * case.gpus))
        load = LoadOptions(
            request_rate=live * case.gpus / seconds,
            num_prompts=number,
            num_frames=CHUNKS * CHUNK_FRAMES,
            fps=case.fps,
            steps=case.steps,
            tier=case.tier,
            seed=1,
        )
        cells = options.pop("cells", math.ceil(case.gpus / CELL))
        plan = FleetPlan(
            self.costs,
            (WorkerConfig(),) * (case.gpus // cells),
            FleetOptions(cells=cells, max_lead=3, **options),
            BatchLimits(max_num_batched_tokens=case.batched_tokens, max_queued=100_000),
        )
        model = SimulatedModel(MODEL, self.config, Size(640, 384))
        return simulate(draw_workload(load), model, plan, ReportOptions(start_buffer=case.buffer))

    def point(self, case: FleetCase, share: float) -> Point:
        """Simulate a load that is a share of the best that the devices could do."""
        live, started = share * self.best(case), time.process_time()
        point = point_of(self.run(case, live), live)
        print(
            f"{case}: {live:.2f} live sessions per GPU: "
            f"{point.stall_free[case.buffer]:.1%} without a stall, "
            f"{point.refused:.0%} refused, {time.process_time() - started:.1f} CPU-s",
            flush=True,
        )
        return point


def point_of(made: Simulated, live: float) -> Point:
    records = made.run.records
    served = [session_metrics(record, 0.0) for record in records if record.outcome == "completed"]
    needed = [each.needed_buffer for each in served if each.needed_buffer is not None]
    first = sorted(each.ttfc for each in served if each.ttfc is not None)
    return Point(
        live,
        {buffer: sum(each <= buffer for each in needed) / len(records) for buffer in BUFFERS},
        sum(record.outcome == "refused" for record in records) / len(records),
        first[int(0.95 * (len(first) - 1))] if first else math.nan,
    )


def capacity(points: Sequence[Point], target: float, buffer: float) -> float:
    """Return live sessions per GPU at which the share without a stall falls below `target`, linear
    between the loads that were tried: NaN if the smallest of them is too much, and the largest one
    if all are carried.
    """
    before: Point | None = None
    for point in points:
        low = point.stall_free[buffer]
        if low < target:
            if before is None:
                return math.nan
            high = before.stall_free[buffer]
            return before.live + (point.live - before.live) * (high - target) / (high - low)
        before = point
    return math.nan if before is None else before.live


def cost_of_minute(live: float) -> float:
    """Return dollars of a minute of video, if one GPU carries `live` sessions."""
    return GPU_HOUR / 60 / live


VARIANTS: dict[str, dict[str, FleetCase]] = {
    "chunk length (fps)": {
        "1.38 s (24)": FleetCase(fps=24),
        "2.06 s (16)": FleetCase(),
        "2.75 s (12)": FleetCase(fps=12),
    },
    "steps": {"1,1,1": FleetCase(), "2,2,2": FleetCase(steps=(2, 2, 2))},
    "tier": {"default": FleetCase(), "priority": FleetCase(tier="priority")},
    "batch budget (tokens)": {
        "4096": FleetCase(batched_tokens=4096),
        "12288": FleetCase(),
        "32768": FleetCase(batched_tokens=32768),
    },
}
FAILURES: dict[str, dict[str, tuple[str, ...]]] = {
    "nothing": {},
    "a worker": {"kill": ("60:0",)},
    "a node of 4": {"kill": ("60:0-3",)},
    "a cell of 8": {"kill_cell": ("60:0",)},
}
FAILING = FleetCase(gpus=16)
FAILING_LOAD = 0.6
"""What the failures happen to, in two cells, and its load as a share of the best."""


def failure(fleet: FleetRuns, name: str) -> dict[str, Any]:
    """Let something die, and note when chunks came and which sessions stalled."""
    made = fleet.run(FAILING, FAILING_LOAD * fleet.best(FAILING), cells=2, **FAILURES[name])
    records = made.run.records
    stalls = [
        session_metrics(record, FAILING.buffer).stall_seconds or 0.0
        for record in records
        if record.chunks
    ]
    stalled = [seconds for seconds in stalls if seconds > 0]
    found = {
        "chunks": sorted(chunk.at for record in records for chunk in record.chunks),
        "sessions": len(records),
        "stalled": len(stalled),
        "worst": max(stalled, default=0.0),
        "lost": sum(record.outcome != "completed" for record in records),
    }
    print(
        f"{name} dies: {len(stalled)} of {len(records)} sessions stall, the longest "
        f"{found['worst']:.1f} s, {found['lost']} are not completed",
        flush=True,
    )
    return found


def engine_limits(fleet: FleetRuns) -> list[dict[str, float]]:
    """Count the CPU time of one engine with more and more workers, simulated workers included."""
    rows = []
    for gpus in (16, 64, 256):
        case = FleetCase(gpus=gpus)
        load = fleet.run(case._replace(gpus=gpus), 0.6 * fleet.best(case))
        rows.append(
            {
                "gpus": gpus,
                "cpu_per_plan_ms": 1000 * load.cpu_seconds / load.counts.plans,
                "plans_per_second": load.counts.plans / load.run.seconds,
            }
        )
        print(rows[-1], flush=True)
    return rows


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Simulate everything, in several processes, and return the results."""
    fleet = FleetRuns(arguments.sessions)
    sizes = [int(text) for text in arguments.gpus.split(",")]
    loads = [float(text) for text in arguments.loads.split(",")]
    cases = dict.fromkeys(case for named in VARIANTS.values() for case in named.values())
    cases = dict.fromkeys(FleetCase(gpus=gpus) for gpus in sizes) | cases
    fork = multiprocessing.get_context("fork")  # which inherits the model's configuration
    with ProcessPoolExecutor(arguments.jobs, mp_context=fork) as pool:
        points = {
            case: [pool.submit(fleet.point, case, share) for share in loads]
            for case in sorted(cases, key=lambda case: -case.gpus)
        }
        died = {name: pool.submit(failure, fleet, name) for name in FAILURES}
        curves = {case: [each.result() for each in made] for case, made in points.items()}
        failed = {name: each.result() for name, each in died.items()}
    return {
        "best": fleet.best(FleetCase()),
        "curves": {str(gpus): curves[FleetCase(gpus=gpus)] for gpus in sizes},
        "variants": {
            title: {name: curves[case] for name, case in named.items()}
            for title, named in VARIANTS.items()
        },
        "failures": failed,
    }


def draw(results: dict[str, Any], folder: Path) -> None:
    """Draw the plots of docs/capacity.md."""
    curves = {
        int(name): [msgspec.convert(point, Point, strict=False) for point in points]
        for name, points in results["curves"].items()
    }
    variants = {
        title: {
            name: [msgspec.convert(point, Point, strict=False) for point in points]
            for name, points in cases.items()
        }
        for title, cases in results["variants"].items()
    }
    draw_fleets(curves, folder / "fleets.png")
    draw_buffers(curves, folder / "buffers.png")
    draw_variants(variants, folder / "variants.png")
    draw_failures(results["failures"], folder / "failures.png")


def draw_fleets(curves: dict[int, list[Point]], path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    sizes, buffer = sorted(curves), FleetCase().buffer
    for gpus in sizes:
        lives = [point.live for point in curves[gpus]]
        shares = [100 * point.stall_free[buffer] for point in curves[gpus]]
        left.plot(lives, shares, marker="o", label=f"{gpus} H100")
    for target in TARGETS:
        costs = [cost_of_minute(capacity(curves[gpus], target, buffer)) for gpus in sizes]
        right.plot(range(len(sizes)), costs, marker="o", label=f"{target:.1%} without a stall")
    left.set(xlabel="mean live sessions per GPU (roofline)", ylabel="% of sessions without a stall")
    right.set(
        xlabel="H100s (roofline)", ylabel=rf"\$ per minute of video at \${GPU_HOUR:.2f} an hour"
    )
    right.set_xticks(range(len(sizes)), list(map(str, sizes)))
    right.set_ylim(bottom=0)
    finish(figure, (left, right), path)


def draw_buffers(curves: dict[int, list[Point]], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(6.5, 4.2), layout="constrained")
    for gpus in sorted(curves):
        lives = [capacity(curves[gpus], 0.99, buffer) for buffer in BUFFERS]
        axes.plot(BUFFERS, lives, marker="o", label=f"{gpus} H100")
    axes.set(xlabel="start-up buffer, s", ylabel="live sessions per GPU, 99% without a stall")
    axes.set_ylim(bottom=0)
    finish(figure, (axes,), path)


def draw_variants(variants: dict[str, dict[str, list[Point]]], path: Path) -> None:
    figure, all_axes = plt.subplots(2, 2, figsize=(11, 7.5), layout="constrained")
    for axes, (title, cases) in zip(all_axes.flat, variants.items(), strict=True):
        for name, points in cases.items():
            shares = [100 * point.stall_free[FleetCase().buffer] for point in points]
            axes.plot([point.live for point in points], shares, marker="o", label=name)
        axes.set(
            title=title,
            xlabel="mean live sessions per GPU, 4 H100s (roofline)",
            ylabel="% of offered without a stall",
        )
    finish(figure, tuple(all_axes.flat), path)


def draw_failures(found: dict[str, Any], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    for name, each in found.items():
        last = max(each["chunks"])
        bins = [10.0 * index for index in range(int(last / 10) + 1)]
        counts = [
            sum(start <= chunk < start + 10 for chunk in each["chunks"]) / 10 for start in bins
        ]
        axes.plot(bins, counts, label=f"{name}: {each['stalled']} of {each['sessions']} stall")
    axes.axvline(60, color="grey", linestyle=":")
    axes.set(xlabel="s; dies at 60 s", ylabel="chunks a second, 16 H100s (roofline)")
    axes.set_ylim(bottom=0)
    finish(figure, (axes,), path)


def finish(figure: Any, all_axes: Sequence[Any], path: Path) -> None:
    for axes in all_axes:
        axes.grid(visible=True, which="both", alpha=0.3)
        axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def print_table(results: dict[str, Any]) -> None:
    """Print capacities and costs as a table in Markdown."""
    print(f"\nlive sessions per GPU at best: {results['best']:.2f}\n")
    print("| H100s | " + " | ".join(f"{target:.1%}" for target in TARGETS) + " |")
    print("|---" * (1 + len(TARGETS)) + "|")
    for gpus, points in results["curves"].items():
        own = [msgspec.convert(point, Point, strict=False) for point in points]
        lives = [capacity(own, target, FleetCase().buffer) for target in TARGETS]
        cells = [
            "below the loads tried"
            if math.isnan(live)
            else f"{live * int(gpus):.1f} (${cost_of_minute(live):.3f})"
            for live in lives
        ]
        print(f"| {gpus} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpus", default="1,4,16,64")
    parser.add_argument("--sessions", type=int, default=500)
    parser.add_argument(
        "--loads",
        default="0.25,0.4,0.5,0.6,0.7,0.8,0.9,1",
        help="mean live sessions that are tried, as shares of what the devices could make at best",
    )
    parser.add_argument("--folder", type=Path, default=Path("docs/capacity"))
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="processes (default: 2)")
    parser.add_argument("--plots-only", action="store_true")
    parser.add_argument("--engine", action="store_true", help="print what one engine takes")
    arguments = parser.parse_args()
    file = arguments.folder / "results.json"
    if arguments.engine:
        engine_limits(FleetRuns(arguments.sessions))
        return
    if not arguments.plots_only:
        found = measure(arguments)
        arguments.folder.mkdir(parents=True, exist_ok=True)
        file.write_bytes(msgspec.json.encode(found) + b"\n")
    results = json.loads(file.read_text())
    print_table(results)
    draw(results, arguments.folder)


if __name__ == "__main__":
    main()
