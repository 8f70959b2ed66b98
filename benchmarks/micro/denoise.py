"""Measures the published transformer's speed, relative to what this machine could reach.

    python benchmarks/micro/denoise.py --output results.json
    python benchmarks/micro/denoise.py --model nano --size 128x64

Weights are random and made on the device. The rates of a matmul, of attention and of a copy are
measured in the same run; the time that they predict for a forward, by its count of operations, is
what the forward is compared with. This part needs torch, numpy, msgspec and safetensors, and on a
GPU Triton.

With diffusers, transformers and av, the whole pipeline is measured as well: an engine that decodes
concurrently with the steps and encodes every chunk as MP4, and diffusers' pipeline on the same
weights; with --official FOLDER the transformer of the official repository too.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from helios_serve.core.cost import forward_flops
from helios_serve.core.history_manager import HistoryManager
from helios_serve.core.scheduler import Scheduler
from helios_serve.core.session import PADDING_ROWS, Session
from helios_serve.entrypoints.cli.arguments import size
from helios_serve.messages import EncodedPrompt
from helios_serve.model_config import CHUNK_FRAMES, Geometry, HeliosConfig
from helios_serve.model_executor.components import build_transformer
from helios_serve.model_executor.device import DTYPES, resolve_device, resolve_dtype
from helios_serve.model_executor.loader import open_checkpoint
from helios_serve.model_executor.models.helios.transformer import HeliosTransformer
from helios_serve.model_executor.weights import fill_random
from helios_serve.model_executor.worker.model_runner import ModelRunner
from helios_serve.model_executor.worker.tensors import as_data
from helios_serve.options.engine import EngineConfig
from helios_serve.options.sampling import SamplingParams
from helios_serve.options.scheduling import SchedulingConfig
from helios_serve.options.workers import WorkerConfig
from helios_serve.video_request import VideoRequest

MODEL = "BestWishYsh/Helios-Distilled"
PROMPT_TOKENS = 40
STEPS = ((1, 1, 1), (2, 2, 2))
CHUNKS = 4
WHOLE_WAY = ("av", "diffusers", "transformers")
"""Packages that the VAE and MP4 need."""


class Clock:
    """Measures the seconds of work on a device, which runs asynchronously."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def now(self) -> float:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        return time.perf_counter()

    def median(self, work: Callable[[], object], rounds: int) -> float:
        """Return the median seconds of `rounds` runs, after one that is not counted."""
        work()
        times = []
        for _ in range(rounds):
            started = self.now()
            work()
            times.append(self.now() - started)
        return statistics.median(times)


class Rates:
    """The measured maximum rates of this machine."""

    def __init__(self, clock: Clock, dtype: torch.dtype, rounds: int) -> None:
        self.clock, self.dtype, self.rounds = clock, dtype, rounds
        self.side = 8192 if clock.device.type != "cpu" else 1024
        self.matmul = self._matmul()
        self.copy = self._copy()

    def attention(self, tokens: int, heads: int, head_dim: int) -> float:
        """Return the FLOP/s of torch's attention among this number of tokens."""
        query = self._random(1, heads, tokens, head_dim)
        seconds = self.clock.median(
            lambda: F.scaled_dot_product_attention(query, query, query), self.rounds
        )
        return 4 * heads * head_dim * tokens**2 / seconds

    def _matmul(self) -> float:
        """Return the FLOP/s of a large square product of random numbers (zeros are faster)."""
        a, b = (self._random(self.side, self.side) for _ in range(2))
        return 2 * self.side**3 / self.clock.median(lambda: a @ b, self.rounds)

    def _copy(self) -> float:
        """Return the bytes per second, read and written, of a large copy."""
        source = self._random(8 * self.side, self.side)
        target = torch.empty_like(source)
        return 2 * source.nbytes / self.clock.median(lambda: target.copy_(source), self.rounds)

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, device=self.clock.device, dtype=self.dtype)


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
        module, component = build_transformer(
            checkpoint.folder, self.config, self.dtype, arguments.quantization
        )
        fill_random(module, component, self.device, seed=0)
        assert isinstance(module, HeliosTransformer)
        if self.device.type != "cpu":
            module.join_projections()
        self.transformer = module.eval().requires_grad_(False)

    def step_times(self, steps: tuple[int, ...]) -> list[list[float]]:
        """Return the seconds of every step of a video, chunk by chunk."""
        per_chunk = sum(steps)
        times = list(self._steps(steps))
        return [times[start : start + per_chunk] for start in range(0, len(times), per_chunk)]

    def _steps(self, steps: tuple[int, ...]) -> Iterator[float]:
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
            runner.execute_model(plan)
            yield self.clock.now() - started
            scheduler.update_from_output(worker)


def measure_forwards(bench: Bench, rates: Rates) -> list[dict[str, float]]:
    """Measure a step of each stage, and compare it with the time that the rates predict."""
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
        attention = rates.attention(tokens, model.num_attention_heads, model.attention_head_dim)
        predicted = flops.linear / rates.matmul + flops.attention / attention
        row = {
            "stage": stage,
            "tokens": tokens,
            "ms": 1e3 * seconds,
            "predicted_ms": 1e3 * predicted,
            "share_of_predicted": predicted / seconds,
            "tflops": flops.total / seconds / 1e12,
            "share_of_matmul_rate": flops.total / seconds / rates.matmul,
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


def measure_whole_way(arguments: argparse.Namespace, config: HeliosConfig) -> list[dict[str, Any]]:
    """Return the frames per second of the whole pipeline, after the first finished chunk."""
    from helios_serve.engine.loop.engine_core import EngineCore
    from helios_serve.engine.loop.events import ChunkReady, RequestFailed
    from helios_serve.model_executor.executor.inline import InlineExecutor

    worker = WorkerConfig(
        model=arguments.model,
        device=arguments.device,
        dtype=arguments.dtype,
        load_format="dummy",
        quantization=arguments.quantization,
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


def measure_diffusers(
    arguments: argparse.Namespace, config: HeliosConfig, device: str, dtype: str
) -> dict[str, Any]:
    """Return the result of vs_diffusers.py, run in a process of its own for its memory."""
    model = config.transformer
    flags = {
        "--device": device,
        "--dtype": dtype,
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
        subprocess.run([*command, "--output", str(output)], check=True)
        result: dict[str, Any] = json.loads(output.read_text())
    return result


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", choices=("auto", *sorted(DTYPES)), default="auto")
    parser.add_argument("--quantization", choices=("fp8",), help="of our transformer")
    parser.add_argument(
        "--model", default=MODEL, help=f"published model whose configuration is used ({MODEL})"
    )
    parser.add_argument("--size", type=size, default=(640, 384), metavar="WIDTHxHEIGHT")
    parser.add_argument(
        "--official",
        type=Path,
        metavar="FOLDER",
        help="a checkout of the official repository, to measure it as well",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    bench = Bench(arguments)
    rates = Rates(bench.clock, bench.dtype, bench.rounds)
    print(
        f"{hardware(bench.device)}: matmul {rates.matmul / 1e12:.1f} TFLOP/s, copy "
        f"{rates.copy / 1e9:.0f} GB/s"
    )
    result: dict[str, Any] = {
        "settings": {key: str(value) for key, value in vars(arguments).items() if key != "output"},
        "hardware": hardware(bench.device),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "matmul_tflops": rates.matmul / 1e12,
        "copy_gb_per_second": rates.copy / 1e9,
        "forwards": measure_forwards(bench, rates),
        "denoising": measure_chunks(bench),
    }
    config, device, dtype = bench.config, bench.device.type, str(bench.dtype).split(".")[-1]
    if bench.device.type != "cpu":
        result["peak_memory_gb"] = torch.accelerator.max_memory_allocated(bench.device) / 1e9
        print(f"at most {result['peak_memory_gb']:.1f} GB in use")
    del bench, rates
    missing = [name for name in WHOLE_WAY if find_spec(name) is None]
    if missing:
        print(f"without {' and '.join(missing)}: VAE, MP4 and diffusers are left out")
    else:
        result["whole_way"] = measure_whole_way(arguments, config)
        result["diffusers"] = measure_diffusers(arguments, config, device, dtype)
    if arguments.output is not None:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")


def hardware(device: torch.device) -> str:
    if device.type == "cpu":
        return f"{platform.machine()} CPU, {os.cpu_count()} cores"
    return torch.cuda.get_device_name(device)


if __name__ == "__main__":
    main()
