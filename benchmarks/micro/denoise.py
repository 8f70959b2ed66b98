"""Measures the published transformer's speed, relative to what this machine could reach.

    python benchmarks/micro/denoise.py --output results.json
    python benchmarks/micro/denoise.py --model nano --size 128x64

Weights are random and made on the device. The rates of a matmul, of attention (by the path that is
served) and of a copy are measured in the same run; the time that they predict for a forward, by its
count of operations, is what the forward is compared with. A step that fails ends the run with its
error. Each part is written to the output when it is done; --parts chooses some:

- forwards, chunks, profile: the transformer alone. Needs torch, numpy, msgspec and safetensors, and
  on a GPU Triton.
- whole-way: an engine with the VAE decoding during the steps and every chunk encoded as MP4. Needs
  diffusers, transformers and av as well.
- diffusers: its pipeline on the same weights, in a process of its own; with --official FOLDER the
  transformer of the official repository too.
"""

import argparse
import gc
import json
import logging
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path
from typing import Any, get_args

import torch
from torch.profiler import ProfilerActivity, profile

from helios_serve.benchmarks.measure.sections import Sections
from helios_serve.benchmarks.micro.rates import MODEL, Clock, Rates
from helios_serve.core.cost import forward_flops
from helios_serve.core.history_manager import HistoryManager
from helios_serve.core.scheduler import Scheduler
from helios_serve.core.session import PADDING_ROWS, Session
from helios_serve.entrypoints.cli.arguments import size
from helios_serve.logger import show_logs
from helios_serve.messages import EncodedPrompt, RunnerOutput
from helios_serve.model_config import CHUNK_FRAMES, Geometry, HeliosConfig
from helios_serve.model_executor.components import build_transformer
from helios_serve.model_executor.device import (
    DTYPES,
    device_name,
    release_cached,
    resolve_device,
    resolve_dtype,
    resolve_kernels,
)
from helios_serve.model_executor.loader import open_checkpoint, optimize_transformer
from helios_serve.model_executor.models.helios.transformer import HeliosTransformer
from helios_serve.model_executor.weights import fill_random
from helios_serve.model_executor.worker.model_runner import ModelRunner
from helios_serve.model_executor.worker.tensors import as_data
from helios_serve.options.engine import EngineConfig
from helios_serve.options.sampling import SamplingParams
from helios_serve.options.scheduling import SchedulingConfig
from helios_serve.options.workers import AttentionBackend, DecodeDtype, WorkerConfig, WorkerOptions
from helios_serve.video_request import VideoRequest

PROMPT_TOKENS = 40
STEPS = ((1, 1, 1), (2, 2, 2))
CHUNKS = 4
WHOLE_WAY = ("av", "diffusers", "transformers")
"""What the VAE and MP4 need."""
PARTS = ("forwards", "chunks", "profile", "whole-way", "diffusers")
ALONE = ("whole-way", "diffusers")
"""Parts that load a model of their own, and need the memory for it."""
SHOWN_KERNELS = 25


class Bench:
    """A transformer with random weights, and sessions of one video each."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.device = resolve_device(arguments.device)
        self.dtype = resolve_dtype(arguments.dtype, self.device)
        self.clock = Clock(self.device)
        self.rounds = arguments.rounds
        self.width, self.height = arguments.size
        self.geometry = Geometry(self.height, self.width)
        checkpoint = open_checkpoint(arguments.model, "dummy")
        self.config: HeliosConfig = checkpoint.config
        options = WorkerOptions(attention_backend=arguments.attention_backend)
        resolve_kernels(self.device, options.attention_backend)
        module, component = build_transformer(
            checkpoint.folder, self.config, self.dtype, arguments.quantization
        )
        fill_random(module, component, self.device, seed=0)
        assert isinstance(module, HeliosTransformer)
        optimize_transformer(module, options)
        self.transformer = module.eval().requires_grad_(False)

    @property
    def attention(self) -> str:
        """The path of self-attention that is measured, by name."""
        return self.transformer.kernels.attention

    def step_times(self, steps: tuple[int, ...]) -> list[list[float]]:
        """Return the seconds of every step of a video, chunk by chunk."""
        per_chunk = sum(steps)
        times = list(self.steps(steps))
        return [times[start : start + per_chunk] for start in range(0, len(times), per_chunk)]

    def steps(self, steps: tuple[int, ...]) -> Iterator[float]:
        model = self.config.transformer
        blocks = HistoryManager.peak_blocks(self.geometry) + 1
        scheduler = Scheduler(SchedulingConfig(max_num_batched_tokens=1 << 20), time.monotonic)
        worker = scheduler.add_worker("here", blocks, PROMPT_TOKENS + PADDING_ROWS)
        runner = ModelRunner(
            self.config, self.transformer, self.device, num_blocks=blocks, text_bytes=1 << 30
        )
        sampling = SamplingParams(
            width=self.width, height=self.height, num_frames=CHUNKS * CHUNK_FRAMES, steps=steps
        )
        request = VideoRequest(request_id="x", prompt="x", params=sampling)
        params = request.resolve(self.config)
        session = Session(request, params, self.config, arrival=0.0)
        states = torch.randn(PROMPT_TOKENS, model.text_dim).to(self.dtype)
        session.prompts.learn(EncodedPrompt("x", as_data(states)))
        scheduler.add_session(session)
        while (plan := scheduler.schedule(worker)).scheduled_steps:
            started = self.clock.now()
            output = runner.execute_model(plan)
            yield self.clock.now() - started
            check_failures(output)
            scheduler.update_from_output(worker)


def check_failures(output: RunnerOutput) -> None:
    """End the run if a step failed: what follows would measure steps without sessions."""
    for failure in output.failures:
        raise SystemExit(f"a step failed, so there is nothing to measure: {failure.message}")


def measure_forwards(bench: Bench, rates: Rates) -> list[dict[str, Any]]:
    """Each stage's step beside what the machine's rates predict for it."""
    model = bench.config.transformer
    chunks = bench.step_times((2, 2, 2))[1:]
    rows = []
    for stage in range(bench.config.stages):
        # Measure the second step of a stage: the first one also enters the stage.
        seconds = statistics.median(chunk[2 * stage + 1] for chunk in chunks)
        flops = forward_flops(bench.config, bench.geometry, stage)
        tokens = bench.geometry.history_tokens + bench.geometry.noise_tokens(
            stage, bench.config.stages
        )
        attention = rates.attention(
            tokens, tokens, model.num_attention_heads, model.attention_head_dim, bench.attention
        )
        predicted = flops.linear / rates.matmul + flops.attention / attention
        row = {
            "stage": stage,
            "tokens": tokens,
            "ms": 1e3 * seconds,
            "predicted_ms": 1e3 * predicted,
            "share_of_predicted": predicted / seconds,
            "tflops": flops.total / seconds / 1e12,
            "share_of_matmul_rate": flops.total / seconds / rates.matmul,
            "attention": bench.attention,
            "attention_tflops": attention / 1e12,
        }
        print(
            f"stage {stage}: {tokens} tokens, {row['ms']:.1f} ms a step, {row['tflops']:.1f} "
            f"TFLOP/s; {row['share_of_predicted']:.0%} of the speed that the rates predict"
        )
        rows.append(row)
    return rows


def measure_chunks(bench: Bench) -> list[dict[str, Any]]:
    """Return the frames per second of denoising alone, without the first chunk."""
    rows = []
    for steps in STEPS:
        seconds = statistics.median(sum(chunk) for chunk in bench.step_times(steps)[1:])
        rows.append({"steps": steps, "seconds": seconds, "fps": CHUNK_FRAMES / seconds})
        print(f"steps {steps}: {CHUNK_FRAMES / seconds:.2f} frames/s without VAE")
    return rows


def measure_profile(bench: Bench) -> list[dict[str, Any]]:
    """What the steps of a chunk spend their time on, by kernel: those with the largest share."""
    steps = bench.steps((1,) * bench.config.stages)
    for _ in range(bench.config.stages):  # the first chunk warms up
        next(steps)
    on_device = bench.device.type != "cpu"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_device else [])]
    with profile(activities=activities) as profiler:
        for _ in range(bench.config.stages):
            next(steps)
    own = attrgetter("self_device_time_total" if on_device else "self_cpu_time_total")
    events = sorted(profiler.key_averages(), key=own, reverse=True)
    total = sum(map(own, events))
    rows = [
        {
            "name": event.key,
            "calls": event.count,
            "ms": own(event) / 1e3,
            "share": own(event) / total,
        }
        for event in events[:SHOWN_KERNELS]
    ]
    for row in rows:
        print(f"{row['ms']:9.3f} ms {row['share']:6.1%} {row['calls']:6} x {row['name'][:80]}")
    return rows


def measure_whole_way(arguments: argparse.Namespace, config: HeliosConfig) -> list[dict[str, Any]]:
    """Return the frames per second of the whole pipeline, after the first finished chunk."""
    from helios_serve.engine.loop.engine_core import EngineCore
    from helios_serve.engine.loop.events import ChunkReady, RequestFailed
    from helios_serve.model_executor.executor.inline import InlineExecutor

    sizes = ("{}x{}".format(*arguments.size),)
    worker = WorkerConfig(
        model=arguments.model,
        device=arguments.device,
        dtype=arguments.dtype,
        load_format="dummy",
        quantization=arguments.quantization,
        decode_dtype=arguments.decode_dtype,
        attention_backend=arguments.attention_backend,
        compile_sizes=sizes if arguments.compile else (),
        warm_up_sizes=sizes,
    )
    width, height = arguments.size
    rows = []
    executor = InlineExecutor()
    core = EngineCore(executor, config, EngineConfig(workers=(worker,)))
    for steps in STEPS:
        params = SamplingParams(
            width=width, height=height, num_frames=2 * CHUNKS * CHUNK_FRAMES, steps=steps
        )
        name = ",".join(map(str, steps))
        core.add_request(VideoRequest(request_id=name, prompt="x", params=params, output="segment"))
        arrivals: list[float] = []
        while core.has_unfinished:
            for event in core.step():
                if isinstance(event, ChunkReady):
                    arrivals.append(time.perf_counter())
                elif isinstance(event, RequestFailed):
                    raise SystemExit(event.message)
        seconds = (arrivals[-1] - arrivals[1]) / (len(arrivals) - 2)
        rows.append({"steps": steps, "seconds": seconds, "fps": CHUNK_FRAMES / seconds})
        print(f"steps {steps}: {CHUNK_FRAMES / seconds:.2f} frames/s with VAE and MP4")
    executor.shutdown()
    return rows


def measure_diffusers(arguments: argparse.Namespace, config: HeliosConfig) -> dict[str, Any]:
    """What vs_diffusers.py finds in a process of its own, which has the memory for itself."""
    model, device = config.transformer, resolve_device(arguments.device)
    flags = {
        "--device": device.type,
        "--dtype": str(resolve_dtype(arguments.dtype, device)).removeprefix("torch."),
        "--heads": model.num_attention_heads,
        "--head-dim": model.attention_head_dim,
        "--layers": model.num_layers,
        "--ffn-dim": model.ffn_dim,
        "--size": "{}x{}".format(*arguments.size),
        "--rounds": arguments.rounds,
    }
    if arguments.official is not None:
        flags["--official"] = arguments.official
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "vs_diffusers.json"
        command = [sys.executable, str(Path(__file__).with_name("vs_diffusers.py"))]
        for flag, value in flags.items():
            command += [flag, str(value)]
        done = subprocess.run([*command, "--output", str(output)], check=False)
        if done.returncode:
            raise SystemExit(f"vs_diffusers.py ended with status {done.returncode}")
        result: dict[str, Any] = json.loads(output.read_text())
    return result


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", choices=("auto", *sorted(DTYPES)), default="auto")
    parser.add_argument("--quantization", choices=("fp8",), help="of our transformer")
    parser.add_argument("--attention-backend", choices=get_args(AttentionBackend), default="auto")
    parser.add_argument(
        "--decode-dtype", choices=get_args(DecodeDtype), default=WorkerOptions().decode_dtype
    )
    parser.add_argument("--compile", action="store_true", help="compile the VAE's decoder")
    parser.add_argument("--model", default=MODEL, help=f"of which configuration ({MODEL})")
    parser.add_argument("--size", type=size, default=(640, 384), metavar="WIDTHxHEIGHT")
    parser.add_argument(
        "--parts", type=parts, default=PARTS, metavar=",".join(PARTS), help="what to measure (all)"
    )
    parser.add_argument(
        "--official",
        type=Path,
        metavar="FOLDER",
        help="a checkout of the official repository, to measure it as well",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    return parser.parse_args(arguments)


def parts(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := set(names) - set(PARTS):
        raise argparse.ArgumentTypeError(
            f"got {', '.join(sorted(unknown))}, expected some of {', '.join(PARTS)}"
        )
    return names


def measure_transformer(arguments: argparse.Namespace, sections: Sections) -> None:
    """The parts that use one transformer, which is freed at the end."""
    bench = Bench(arguments)
    rates = Rates(bench.clock, bench.dtype, bench.rounds)
    print(
        f"{device_name(bench.device)}: {bench.transformer.kernels}, matmul "
        f"{rates.matmul / 1e12:.1f} TFLOP/s, copy {rates.copy / 1e9:.0f} GB/s"
    )
    sections.add("kernels", str(bench.transformer.kernels))
    sections.add("matmul_tflops", rates.matmul / 1e12)
    sections.add("copy_gb_per_second", rates.copy / 1e9)
    if "forwards" in arguments.parts:
        sections.add("forwards", measure_forwards(bench, rates))
    if "chunks" in arguments.parts:
        sections.add("denoising", measure_chunks(bench))
    if "profile" in arguments.parts:
        sections.add("profile", measure_profile(bench))
    if bench.device.type != "cpu":
        peak = torch.accelerator.max_memory_allocated(bench.device) / 1e9
        print(f"at most {peak:.1f} GB in use")
        sections.add("peak_memory_gb", peak)


def free_memory(device: torch.device) -> None:
    """Free what earlier parts held, for those that load a model of their own."""
    gc.collect()
    release_cached(device)


def main() -> None:
    arguments = parse_arguments()
    show_logs(logging.WARNING)
    device = resolve_device(arguments.device)
    sections = Sections(
        arguments.output,
        settings={key: str(value) for key, value in vars(arguments).items() if key != "output"},
        hardware=device_name(device),
        versions={"torch": torch.__version__, "python": platform.python_version()},
    )
    if set(arguments.parts) - set(ALONE):
        measure_transformer(arguments, sections)
        free_memory(device)
    wanted = [part for part in ALONE if part in arguments.parts]
    missing = [name for name in WHOLE_WAY if find_spec(name) is None]
    if wanted and missing:
        print(f"without {' and '.join(missing)}: {' and '.join(wanted)} are left out")
        return
    config = open_checkpoint(arguments.model, "dummy").config
    if "whole-way" in wanted:
        sections.add("whole_way", measure_whole_way(arguments, config))
        free_memory(device)
    if "diffusers" in wanted:
        sections.add("diffusers", measure_diffusers(arguments, config))


if __name__ == "__main__":
    main()
