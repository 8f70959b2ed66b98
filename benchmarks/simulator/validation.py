"""Whether the simulator says what a real server does.

    python benchmarks/simulator/validation.py [--loads 0.3,0.6,0.85,1.2] [--sessions 40] [--runs 2]
    python benchmarks/simulator/validation.py --folder measured --loads 0.3      # then the others

Starts a server with the built-in model and measures its capacity: all of some sessions at once. The
costs are fitted to the trace of one load, at half of the capacity. Then other loads, with other
seeds, run on the server and in the simulator, and are compared: means and medians within 10 %, p95
within 15 %, frames per second within 3 % beyond the capacity, and the order in which sessions end.
An error within the spread of the real runs counts as met. The machine should do nothing else: how
much of its CPU time others took is printed. Its speed may still have changed since the calibration:
the simulation is repeated with costs of the trace of the load itself, which is no prediction, but
shows how much of an error that explains. With --folder, what was measured is kept, and is not
measured again: loads can be measured one at a time, and judged once more after a change.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from helios_serve.benchmarks.load.workload import Workload, draw_workload
from helios_serve.benchmarks.measure.record import SessionRecord
from helios_serve.benchmarks.measure.result_files import read_result, read_sessions
from helios_serve.benchmarks.simulator.agreement import (
    TAU,
    compare,
    completion_tau,
    refused,
    table_lines,
)
from helios_serve.benchmarks.simulator.costs import DeviceCosts, slowdown_lines
from helios_serve.benchmarks.simulator.cpu_time import CpuTime
from helios_serve.benchmarks.simulator.fit import fit_costs
from helios_serve.benchmarks.simulator.observations import read_observations
from helios_serve.benchmarks.simulator.simulation import (
    FleetPlan,
    SimulatedModel,
    simulate,
    simulated_result,
)
from helios_serve.engine.launch import read_model_config
from helios_serve.options.benchmarks import LoadOptions, ReportOptions
from helios_serve.options.sampling import default_size
from helios_serve.options.scheduling import BatchLimits
from helios_serve.options.simulation import FleetOptions
from helios_serve.options.workers import WorkerConfig

MODEL = "nano"
MIX = json.dumps(
    [
        {"width": 64, "height": 64, "num_frames": 66, "weight": 2},
        {"width": 128, "height": 64, "num_frames": 99, "weight": 2},
        {"width": 64, "height": 64, "num_frames": 132, "tier": "priority", "weight": 1},
    ]
)
CALIBRATION = 0.5
CALIBRATED = "calibration"
PORT = 18431


class NanoServer:
    """`helios-serve serve` with a trace."""

    def __init__(self, folder: Path, trace: Path, port: int) -> None:
        self.trace = trace
        self.url = f"http://127.0.0.1:{port}"
        command = [
            *(sys.executable, "-m", "helios_serve", "serve", MODEL, "--device", "cpu"),
            *("--port", str(port), "--data-dir", str(folder / "data")),
            *("--trace", str(trace), "--log-level", "error"),
        ]
        self.process = subprocess.Popen(command)

    def close(self) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.wait(60)


class Measurements:
    """What a server did under loads, kept in `folder`. `with` ends the server.

    A server is started when a load was not measured yet, one for each trace: that of the first two
    loads, the capacity and the calibration, is the one to which costs are fitted.
    """

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self._port = port
        self._server: NanoServer | None = None

    def trace(self, name: str) -> Path:
        """Return the trace of the server that ran the loads of a name."""
        return self.folder / f"{name}-trace.json"

    def run(self, name: str, load: LoadOptions, *, traced: str) -> Path:
        """Return the result of a load, which is measured unless it was before."""
        result = self.folder / f"{name}-{load.num_prompts}.json"
        if result.exists():
            return result
        trace = self.trace(traced)
        if self._server is not None and self._server.trace != trace:
            self.close()
        if self._server is None:
            self._server = NanoServer(self.folder, trace, self._port)
        before, started = CpuTime.of(os.getpid()), time.monotonic()
        measure(self._server, load, result)
        others = CpuTime.of(os.getpid()).others(before, time.monotonic() - started)
        print(f"measured {name}: others took {others:.1%} of the CPU time", flush=True)
        return result

    def __enter__(self) -> "Measurements":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None


def measure(server: NanoServer, load: LoadOptions, result: Path) -> None:
    """Run a load on the server with `helios-serve bench serve`."""
    command = [
        *(sys.executable, "-m", "helios_serve", "bench", "serve", "--base-url", server.url),
        *("--num-prompts", str(load.num_prompts), "--seed", str(load.seed)),
        *("--random-request-config", MIX, "--request-rate", str(load.request_rate)),
        *("--result-dir", str(result.parent), "--result-filename", result.name),
        *("--disable-tqdm", "--no-self-check", "--ready-check-timeout-sec", "300"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not result.exists():
        raise SystemExit(f"bench serve failed:\n{done.stdout}\n{done.stderr}")


def capacity_of(records: list[SessionRecord]) -> float:
    """Return sessions per second of a server that always had work."""
    ends = sorted(record.ended or 0.0 for record in records if record.outcome == "completed")
    return len(ends) / ends[-1]


def workload_of(rate: float, sessions: int, seed: int) -> Workload:
    return draw_workload(
        LoadOptions(request_rate=rate, num_prompts=sessions, random_request_config=MIX, seed=seed)
    )


def calibrate(trace: Path) -> DeviceCosts:
    """Fit the costs to the trace of a server."""
    return fit_costs(
        read_observations(trace),
        read_model_config(MODEL, "auto"),
        name="this machine",
        origin=f"a trace of {MODEL}",
        text_rows=1_000_000,
    )


def cost_lines(costs: DeviceCosts) -> Iterator[str]:
    """Yield how well costs fit, and what lanes take of each other."""
    for lane, error in costs.errors.items():
        yield f"{lane}: error {error.mape:.1%} of {error.n} held out, bias {error.bias:+.1%}"
    yield from slowdown_lines(costs)


def simulated_run(
    costs: DeviceCosts, workload: Workload
) -> tuple[list[SessionRecord], dict[str, Any]]:
    model = SimulatedModel(MODEL, read_model_config(MODEL, "auto"), default_size(MODEL))
    plan = FleetPlan(costs, (WorkerConfig(model=MODEL),), FleetOptions(), BatchLimits())
    made = simulate(workload, model, plan, ReportOptions())
    return made.run.records, simulated_result(made, command="")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--loads", default="0.3,0.6,0.85,1.2")
    parser.add_argument("--sessions", type=int, default=40)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    parser.add_argument("--port", type=int, default=PORT)
    parser.add_argument("--folder", type=Path, help="keep what was measured here, and use it again")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.folder or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        with Measurements(folder, arguments.port) as measured:
            rows = judge(measured, arguments)
    if arguments.output is not None:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(rows, indent=2) + "\n")


def judge(measured: Measurements, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Calibrate, then compare every load. Returns the printed rows."""
    sessions: int = arguments.sessions
    at_once = LoadOptions(num_prompts=sessions, seed=1000)
    capacity = capacity_of(read_sessions(measured.run("capacity", at_once, traced=CALIBRATED)))
    print(f"capacity: {capacity:.3f} sessions/s", flush=True)
    half = LoadOptions(num_prompts=sessions, seed=1001, request_rate=CALIBRATION * capacity)
    measured.run("calibration", half, traced=CALIBRATED)
    costs = calibrate(measured.trace(CALIBRATED))
    print("\n".join(cost_lines(costs)), flush=True)
    own, _ = simulated_run(
        costs, draw_workload(msgspec.structs.replace(at_once, random_request_config=MIX))
    )
    error = capacity_of(own) / capacity - 1
    print(f"capacity as simulated: {capacity_of(own):.3f} sessions/s, error {error:+.1%}")
    rows: list[dict[str, Any]] = [{"capacity": capacity, "simulated": capacity_of(own)}]
    for load in map(float, filter(None, arguments.loads.split(","))):
        rows.append(compare_load(measured, costs, load, capacity, arguments))
    return rows


def compare_load(
    measured: Measurements,
    costs: DeviceCosts,
    load: float,
    capacity: float,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Run a load on the server several times and in the simulator once, and print both."""
    rate, sessions, seed = load * capacity, arguments.sessions, round(100 * load)
    options = LoadOptions(request_rate=rate, num_prompts=sessions, seed=seed)
    name = f"load-{load:g}"
    paths = [measured.run(f"{name}-{run}", options, traced=name) for run in range(arguments.runs)]
    runs = [read_sessions(path) for path in paths]
    workload = workload_of(rate, sessions, seed)
    own, result = simulated_run(costs, workload)
    found = compare(runs, own)
    print(f"\nload {load:g} of the capacity, {sessions} sessions, {len(runs)} real runs")
    print("\n".join(table_lines(found)))
    taus = [completion_tau(run, own) for run in runs]
    print(f"order of completion: tau {min(taus):.3f} (goal {TAU})")
    real = sum(read_result(path)["helios"]["frames_per_second"] for path in paths) / len(paths)
    simulated = result["helios"]["frames_per_second"]
    print(f"frames/s: {real:.1f} and {simulated:.1f} ({simulated / real - 1:+.1%})")
    print(f"refused: {[refused(run) for run in runs]} and {refused(own)}", flush=True)
    same, _ = simulated_run(calibrate(measured.trace(name)), workload)
    explained = compare(runs, same)
    print(
        f"with costs of this load's own trace: {sum(each.is_met for each in explained)} of "
        f"{len(explained)} met, largest error {max(abs(each.error) for each in explained):.1%}",
        flush=True,
    )
    return {
        "load": load,
        "tau": taus,
        "frames_per_second": [real, simulated],
        "comparisons": [each._asdict() | {"error": each.error} for each in found],
        "with_own_costs": [each._asdict() | {"error": each.error} for each in explained],
    }


if __name__ == "__main__":
    main()
