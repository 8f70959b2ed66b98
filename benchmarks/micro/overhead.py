"""Measures what a denoise step costs in addition to the transformer's forward.

    python benchmarks/micro/overhead.py [--executors inline local ray] [--output results.json]

Sessions of one long chunk run on a worker that only denoises; a second worker encodes and decodes.
The time from step to step, less the worker's time in the forward, is the cost of scheduling,
messages, packing and sampling that does not overlap with the forward.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import torch

from helios_serve.engine.launch import launch
from helios_serve.engine.loop.engine_core import EngineCore
from helios_serve.entrypoints.cli.arguments import size
from helios_serve.messages import StepsDone
from helios_serve.model_executor.executor.abstract import Received
from helios_serve.options.sampling import SamplingParams, default_size
from helios_serve.options.workers import (
    DEFAULT_MODEL,
    ExecutorKind,
    Resources,
    WorkerConfig,
    WorkerGroup,
)
from helios_serve.video_request import VideoRequest

SESSIONS = (1, 4, 16)
STEPS = (40, 40, 40)
WARM_UP = 10
AIM_MS = 5.0


class Meter:
    """Wraps an executor, and records when the denoising worker returns plans."""

    def __init__(self, engine: EngineCore) -> None:
        self._poll = engine.executor.poll
        engine.executor.poll = self.poll  # type: ignore[method-assign]
        self.arrivals: list[float] = []
        self.forwards: list[float] = []

    def poll(self, timeout: float) -> list[Received]:
        received = self._poll(timeout)
        for item in received:
            if isinstance(item.event, StepsDone) and item.event.output.forward_seconds:
                self.arrivals.append(time.perf_counter())
                self.forwards.append(item.event.output.forward_seconds)
        return received

    def overhead(self) -> tuple[float, float, int]:
        """Return the milliseconds per step outside of the forward and in it, and the steps."""
        count = len(self.arrivals) - WARM_UP - 1
        wall = self.arrivals[-2] - self.arrivals[WARM_UP]
        forward = sum(self.forwards[WARM_UP + 1 : -1])
        steps = count - 1
        self.arrivals.clear()
        self.forwards.clear()
        return 1e3 * (wall - forward) / steps, 1e3 * forward / steps, steps


def start(kind: ExecutorKind, arguments: argparse.Namespace) -> EngineCore:
    groups = tuple(
        WorkerGroup(
            WorkerConfig(
                model=arguments.model,
                device=arguments.device,
                roles=roles,
                resources=Resources(num_cpus=1),
            )
        )
        for roles in (("denoise",), ("encode", "decode"))
    )
    engine = launch(arguments.model, groups, kind)
    while not all(handle.is_ready for handle in engine.worker_pool.workers.values()):
        engine.step()
    return engine


def run(engine: EngineCore, sessions: int, arguments: argparse.Namespace) -> None:
    width, height = arguments.size or default_size(arguments.model)
    for index in range(sessions):
        params = SamplingParams(width=width, height=height, num_frames=33, seed=index, steps=STEPS)
        engine.add_request(
            VideoRequest(request_id=f"session-{index}", prompt="a dog runs", params=params)
        )
    while engine.has_unfinished:
        engine.step()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--size", type=size, metavar="WIDTHxHEIGHT")
    parser.add_argument("--executors", nargs="+", default=["inline", "local", "ray"])
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    arguments = parser.parse_args()
    rows = []
    print(f"{'executor':>8} {'sessions':>8} {'outside ms':>11} {'forward ms':>11} {'steps':>6}")
    for kind in arguments.executors:
        engine = start(kind, arguments)
        meter = Meter(engine)
        for sessions in SESSIONS:
            run(engine, sessions, arguments)
            outside, forward, steps = meter.overhead()
            rows.append(
                {
                    "executor": kind,
                    "sessions": sessions,
                    "outside_forward_ms": outside,
                    "forward_ms": forward,
                    "steps": steps,
                }
            )
            print(f"{kind:>8} {sessions:>8} {outside:>11.2f} {forward:>11.2f} {steps:>6}")
        engine.executor.shutdown()
    print(f"aim: at most {AIM_MS:g} ms a step outside the forward")
    if arguments.output is not None:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        machine = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
        result = {"machine": machine, "model": arguments.model, "rows": rows}
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
