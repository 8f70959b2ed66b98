"""What a machine does at best: matmuls, attention by its served path, and copies, measured.

    python benchmarks/micro/rates.py --output results.json
    python benchmarks/micro/rates.py --model nano --size 128x64 --seconds 1

`denoise.py` predicts forwards from these rates. Run alone, this program measures the matmuls of a
stage, every path of attention for its tokens, and a large matmul for a while: GPUs slow down when
they are warm. Needs torch, numpy, msgspec, safetensors and transformers, and on a GPU Triton.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from helios_serve.benchmarks.measure.sections import Sections
from helios_serve.entrypoints.cli.arguments import size
from helios_serve.kernels.backend import AUTO, available
from helios_serve.kernels.registry import kernels_of
from helios_serve.kernels.rows import Lengths
from helios_serve.model_config import Geometry, HeliosConfig
from helios_serve.model_executor.device import (
    DTYPES,
    current_device,
    device_name,
    resolve_device,
    resolve_dtype,
)
from helios_serve.model_executor.loader import open_checkpoint

MODEL = "BestWishYsh/Helios-Distilled"


class Clock:
    """Seconds of work on a device, which runs on by itself."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def now(self) -> float:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        return time.perf_counter()

    def median(self, work: Callable[[], object], rounds: int) -> float:
        """Of `rounds` runs, after one that is not counted."""
        work()
        times = []
        for _ in range(rounds):
            started = self.now()
            work()
            times.append(self.now() - started)
        return statistics.median(times)


class Product(NamedTuple):
    """A matmul (rows, inner) @ (inner, columns) of a layer."""

    name: str
    rows: int
    inner: int
    columns: int


def layer_products(config: HeliosConfig, geometry: Geometry, stage: int) -> list[Product]:
    """The matmuls of one layer at a stage, for one session."""
    dim, ffn = config.transformer.inner_dim, config.transformer.ffn_dim
    noise = geometry.noise_tokens(stage, config.stages)
    tokens = geometry.history_tokens + noise
    return [
        Product("qkv", tokens, dim, 3 * dim),
        Product("out", tokens, dim, dim),
        Product("text query", noise, dim, dim),
        Product("text out", noise, dim, dim),
        Product("up", tokens, dim, ffn),
        Product("down", tokens, ffn, dim),
    ]


class Rates:
    """What this machine does at best. Inputs are random: zeros are quicker."""

    def __init__(self, clock: Clock, dtype: torch.dtype, rounds: int) -> None:
        self.clock, self.dtype, self.rounds = clock, dtype, rounds
        self.side = 8192 if clock.device.type != "cpu" else 1024
        self.matmul = self.product(Product("square", self.side, self.side, self.side))
        self.copy = self._copy()

    def product(self, shape: Product) -> float:
        """FLOP/s of a matmul with weights as a linear layer has them."""
        x, weight = self._random(shape.rows, shape.inner), self._random(shape.columns, shape.inner)
        seconds = self.clock.median(lambda: x @ weight.T, self.rounds)
        return 2 * shape.rows * shape.inner * shape.columns / seconds

    def sustained(self, seconds: float) -> float:
        """FLOP/s of the large square product in the last quarter of that time."""
        a, b = (self._random(self.side, self.side) for _ in range(2))
        started, ends = self.clock.now(), [0.0]
        while ends[-1] < seconds:
            for _ in range(4):
                a @ b
            ends.append(self.clock.now() - started)
        late = [end for end in ends if end >= 0.75 * seconds]
        first = ends[max(0, len(ends) - len(late) - 1)]
        return 4 * len(late) * 2 * self.side**3 / (ends[-1] - first)

    def attention(
        self, queries: int, keys: int, heads: int, head_dim: int, path: str = AUTO
    ) -> float:
        """FLOP/s of self-attention by `path`, which is the served one by default."""
        device = self.clock.device
        query = self._random(queries, heads, head_dim)
        # Values as the joined projection leaves them: a part of wider rows.
        _, key, value = torch.split(self._random(keys, 3 * heads, head_dim), heads, dim=1)
        key = key.contiguous()
        lengths = Lengths([queries], device), Lengths([keys], device)
        attend = kernels_of(query, path).attention
        with current_device(device):
            seconds = self.clock.median(lambda: attend(query, key, value, *lengths), self.rounds)
        return 4 * heads * head_dim * queries * keys / seconds

    def _copy(self) -> float:
        """Bytes a second, read and written."""
        source = self._random(8 * self.side, self.side)
        target = torch.empty_like(source)
        return 2 * source.nbytes / self.clock.median(lambda: target.copy_(source), self.rounds)

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, device=self.clock.device, dtype=self.dtype)


def measure_stage(
    rates: Rates, config: HeliosConfig, geometry: Geometry, stage: int
) -> dict[str, Any]:
    """The matmuls of a stage, and every path of attention: of all tokens, and of the last layer."""
    products = {
        shape.name: rates.product(shape) / 1e12 for shape in layer_products(config, geometry, stage)
    }
    model = config.transformer
    noise = geometry.noise_tokens(stage, config.stages)
    tokens = geometry.history_tokens + noise
    attention = {
        f"{path}, {queries} x {tokens}": rates.attention(
            queries, tokens, model.num_attention_heads, model.attention_head_dim, path
        )
        / 1e12
        for path in available(rates.clock.device)
        for queries in (tokens, noise)
    }
    for kind, found in (("matmul", products), ("attention", attention)):
        for name, rate in found.items():
            print(f"stage {stage}, {kind} {name}: {rate:.4g} TFLOP/s")
    return {"stage": stage, "matmul_tflops": products, "attention_tflops": attention}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", choices=("auto", *sorted(DTYPES)), default="auto")
    parser.add_argument(
        "--model", default=MODEL, help=f"model whose configuration is used ({MODEL})"
    )
    parser.add_argument("--size", type=size, default=(640, 384), metavar="WIDTHxHEIGHT")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20.0, help="of the sustained matmul")
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    device = resolve_device(arguments.device)
    rates = Rates(Clock(device), resolve_dtype(arguments.dtype, device), arguments.rounds)
    config = open_checkpoint(arguments.model, "dummy").config
    width, height = arguments.size
    sections = Sections(
        arguments.output,
        settings={key: str(value) for key, value in vars(arguments).items() if key != "output"},
        hardware=device_name(device),
        versions={"torch": torch.__version__},
        matmul_tflops=rates.matmul / 1e12,
        copy_gb_per_second=rates.copy / 1e9,
    )
    print(f"matmul {rates.matmul / 1e12:.4g} TFLOP/s, copy {rates.copy / 1e9:.0f} GB/s")
    stages: list[dict[str, Any]] = []
    for stage in range(config.stages):
        stages.append(measure_stage(rates, config, Geometry(height, width), stage))
        sections.add("stages", stages)
    sustained = rates.sustained(arguments.seconds) / 1e12
    print(f"after {arguments.seconds:g} s of matmuls: {sustained:.4g} TFLOP/s")
    sections.add("sustained_matmul_tflops", sustained)


if __name__ == "__main__":
    main()
