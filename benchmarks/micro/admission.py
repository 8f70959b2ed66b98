"""Measures how long users wait for their first chunk when they arrive one after the other.

    python benchmarks/micro/admission.py [--model nano] [--workers 1] [--output results.json]

For 1, 2, 4 and 8 sessions that start staggered on real worker processes: time to first chunk of
each, against that of a session that has the workers to itself, and frames per second of all of
them together, against running them one by one. The model is loaded before anything is timed.
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import torch

from helios_serve.engine.loop.engine_core import EngineCore
from helios_serve.engine.loop.events import ChunkReady, RequestFailed
from helios_serve.entrypoints.cli.arguments import size
from helios_serve.model_executor.executor.local import LocalExecutor
from helios_serve.model_executor.loader import open_checkpoint
from helios_serve.options.engine import EngineConfig
from helios_serve.options.sampling import SamplingParams, default_size
from helios_serve.options.workers import DEFAULT_MODEL, WorkerConfig
from helios_serve.video_request import VideoRequest

SESSIONS = (1, 2, 4, 8)
AIM = 2.5


class Bench:
    """An engine with loaded workers, to which requests are added at given times."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        config = WorkerConfig(model=arguments.model, device=arguments.device)
        self.executor = LocalExecutor()
        self.engine = EngineCore(
            self.executor,
            open_checkpoint(arguments.model, "auto").config,
            EngineConfig(workers=(config,) * arguments.workers),
        )
        while not all(handle.is_ready for handle in self.engine.worker_pool.workers.values()):
            self.engine.step()
        self._number = 0

    def run(self, starts: list[float]) -> tuple[list[float], float]:
        """Start a session at each of `starts`. Returns seconds to first chunks, and to the end."""
        waiting = list(starts)
        first: dict[str, float] = {}
        begun: dict[str, float] = {}
        started = time.perf_counter()
        while waiting or self.engine.has_unfinished:
            now = time.perf_counter() - started
            while waiting and waiting[0] <= now:
                waiting.pop(0)
                request = self.request()
                begun[request.request_id] = time.perf_counter()
                self.engine.add_request(request)
            for event in self.engine.step(timeout=0.01):
                if isinstance(event, ChunkReady):
                    since = time.perf_counter() - begun[event.request_id]
                    first.setdefault(event.request_id, since)
                elif isinstance(event, RequestFailed):
                    raise SystemExit(f"{event.request_id} failed: {event.message}")
        return list(first.values()), time.perf_counter() - started

    def request(self) -> VideoRequest:
        self._number += 1
        width, height = self.arguments.size or default_size(self.arguments.model)
        return VideoRequest(
            request_id=f"session-{self._number}",
            prompt="a dog runs over a green hill",
            params=SamplingParams(
                width=width,
                height=height,
                num_frames=33 * self.arguments.chunks,
                seed=self._number,
            ),
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--chunks", type=int, default=5)
    parser.add_argument("--size", type=size, metavar="WIDTHxHEIGHT")
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    arguments = parser.parse_args()
    bench = Bench(arguments)
    bench.run([0.0])  # warms up
    alone = [bench.run([0.0]) for _ in range(3)]
    solo = statistics.median(first[0] for first, _ in alone)
    solo_total = statistics.median(total for _, total in alone)
    frames = 33 * arguments.chunks
    print(f"alone: first chunk after {solo:.2f} s, {frames / solo_total:.1f} frames/s")
    print(
        f"{'sessions':>8} {'first chunk s':>22} {'last / solo':>12} {'frames/s':>9} {'/ solo':>7}"
    )
    rows = []
    for count in SESSIONS:
        stagger = solo_total / count / 2
        firsts, total = bench.run([index * stagger for index in range(count)])
        rate = count * frames / total
        row = {
            "sessions": count,
            "stagger_s": stagger,
            "first_chunk_s": firsts,
            "worst_over_solo": max(firsts) / solo,
            "frames_per_s": rate,
            "rate_over_one_by_one": rate / (frames / solo_total),
        }
        rows.append(row)
        print(
            f"{count:>8} {min(firsts):>10.2f} to {max(firsts):>8.2f} "
            f"{row['worst_over_solo']:>12.2f} {rate:>9.1f} {row['rate_over_one_by_one']:>7.2f}"
        )
    print(f"aim: first chunk within {AIM} times solo for the second of two sessions")
    bench.executor.shutdown()
    if arguments.output is not None:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        machine = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
        result = {"machine": machine, "model": arguments.model, "workers": arguments.workers}
        result |= {"solo_first_chunk_s": solo, "solo_total_s": solo_total, "rows": rows}
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
