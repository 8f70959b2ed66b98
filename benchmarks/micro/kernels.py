"""Compares each Triton kernel with its torch reference on a GPU: time, and share of a copy's GB/s.

    make bench-kernels          # needs torch, triton and this repository, nothing else
    python benchmarks/micro/kernels.py [--size 640x384] [--heads 40] [--output results.json]

A kernel's bytes are what it has to read and write at least once. The copy bandwidth is that of a
large copy in the same run. Attention is given in TFLOP/s, for every path that the machine has.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from helios_serve.benchmarks.measure.sections import Sections
from helios_serve.kernels.backend import available, triton_lack
from helios_serve.kernels.registry import REFERENCE, Kernels, attention_by, triton_kernels
from helios_serve.kernels.rope import PackedRope, Rope
from helios_serve.kernels.rows import Lengths, NormTable, PackRows, Run

EPS = 1e-6
TEXT_ROWS = 44
COPY_BYTES = 1 << 30


class Work(NamedTuple):
    """One call of a kernel by some implementation, and the bytes that it must move."""

    call: Callable[[Kernels], object]
    moved: int


class Sizes(NamedTuple):
    """One session at full resolution: token counts and widths."""

    history: int
    noise: int
    heads: int
    head_dim: int

    @property
    def tokens(self) -> int:
        return self.history + self.noise

    @property
    def dim(self) -> int:
        return self.heads * self.head_dim


def session_sizes(arguments: argparse.Namespace) -> Sizes:
    """Return the token counts of a session, as the model lays them out."""
    width, height = (int(part) for part in arguments.size.split("x"))
    rows, cols = height // 16, width // 16
    long = 4 * math.ceil(rows / 4) * math.ceil(cols / 4)
    mid = math.ceil(rows / 2) * math.ceil(cols / 2)
    return Sizes(long + mid + 2 * rows * cols, 9 * rows * cols, arguments.heads, arguments.head_dim)


def size_of(*tensors: Tensor) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def row_works(sizes: Sizes, device: torch.device) -> dict[str, Work]:
    """Return norms, residuals and RoPE over the tokens of one session, in bf16."""
    normal = partial(torch.randn, dtype=torch.bfloat16, device=device)
    rows = PackRows(
        [Run(0, sizes.history, 0, is_history=True), Run(sizes.history, sizes.tokens, 1)], device
    )
    x, update = (normal(sizes.tokens, sizes.dim) for _ in range(2))
    noise = normal(sizes.noise, sizes.dim)
    table = torch.randn(6, 2, sizes.dim, device=device)
    norm, text_norm = NormTable(table[0], table[1]), NormTable(table[2, :1], table[3, :1])
    qkv = normal(sizes.tokens, 3 * sizes.dim)
    query, key, _ = torch.split(qkv, sizes.dim, dim=1)
    weights = normal(sizes.dim), normal(sizes.dim)
    pairs = sizes.head_dim // 2
    angles = torch.randn(64, pairs, device=device)
    places = torch.randint(64, (sizes.tokens, 3), dtype=torch.int32, device=device)
    thirds = (pairs - 2 * (pairs // 3), pairs // 3, pairs // 3)
    rope = PackedRope(
        [(Rope(torch.polar(torch.ones_like(angles), angles), places, thirds), slice(None))]
    )

    def gated(kernels: Kernels, *, noise_only: bool) -> Tensor:
        chosen = text_norm if noise_only else norm
        return kernels.gated_residual_norm_(
            x, update, rows, table[4], chosen, EPS, noise_only=noise_only
        )

    return {
        "norm_modulate": Work(lambda k: k.norm_modulate(x, rows, norm, EPS), 2 * size_of(x)),
        "gated_residual_norm": Work(partial(gated, noise_only=False), 4 * size_of(x)),
        "gated_residual_norm, noise": Work(
            partial(gated, noise_only=True), 3 * size_of(x) + size_of(noise)
        ),
        "noise_residual_norm": Work(
            lambda k: k.noise_residual_norm_(x, noise, rows, norm, EPS),
            2 * size_of(x) + 2 * size_of(noise),
        ),
        "qk_norm_rope": Work(
            lambda k: k.qk_norm_rope_(query, key, weights, rope, rows, sizes.heads, EPS),
            4 * size_of(x),
        ),
        "quantize_rows": Work(lambda k: k.quantize_rows(x), size_of(x) + x.numel()),
        "gelu_fp8": Work(lambda k: k.gelu_fp8(qkv), size_of(qkv) + qkv.numel()),
        "norm_modulate_fp8": Work(
            lambda k: k.norm_modulate_fp8(x, rows, norm, EPS), size_of(x) + x.numel()
        ),
        "gated_residual_norm_fp8": Work(
            lambda k: k.gated_residual_norm_fp8_(x, update, rows, table[4], norm, EPS),
            3 * size_of(x) + x.numel(),
        ),
        "noise_residual_norm_fp8": Work(
            lambda k: k.noise_residual_norm_fp8_(x, noise, rows, norm, EPS),
            size_of(x) + x.numel() + 2 * size_of(noise),
        ),
    }


def sampler_works(
    sizes: Sizes, arguments: argparse.Namespace, device: torch.device
) -> dict[str, Work]:
    """Return the kernels that run once per step or stage, whose launches matter."""
    width, height = (int(part) for part in arguments.size.split("x"))
    grid = height // 32, width // 32
    blocks = 20 * math.ceil(height / 64) * math.ceil(width / 64)
    pool = torch.randn(blocks, 16, 64, dtype=torch.bfloat16, device=device)
    window = torch.randperm(blocks, device=device)
    places = torch.randperm(16 * blocks, device=device)
    rows = torch.randn(9 * grid[0] * grid[1], 64, dtype=torch.bfloat16, device=device)
    drawn, factor = (
        torch.randn(16, 4 * len(rows), 4, device=device),
        torch.randn(4, 4, device=device),
    )
    latents, flow, start = torch.randn(
        3, sizes.noise, 64, dtype=torch.bfloat16, device=device
    ).unbind()
    return {
        "gather_window": Work(
            lambda k: k.gather_window(pool, window, places), 2 * size_of(pool) + size_of(places)
        ),
        "enter_stage": Work(
            lambda k: k.enter_stage(rows, grid, (0.75, 0.43), drawn, factor, torch.bfloat16),
            5 * size_of(rows) + size_of(drawn),
        ),
        "dmd_step": Work(
            lambda k: k.dmd_step(latents, flow, start, 0.9, 0.45), 4 * size_of(latents)
        ),
    }


def measure(call: Callable[[], object]) -> float:
    """Return the median milliseconds of a call, with cold caches."""
    from triton.testing import do_bench

    return float(do_bench(call, warmup=50, rep=200, return_mode="median"))


def compare(works: dict[str, Work], copy_rate: float) -> list[dict[str, Any]]:
    """Time each kernel and its reference, and print the kernel's share of the copy bandwidth."""
    results = []
    for name, work in works.items():
        ours, theirs = (
            measure(partial(work.call, kernels)) for kernels in (triton_kernels(), REFERENCE)
        )
        rate = work.moved / ours / 1e6
        results.append(
            {
                "kernel": name,
                "ms": ours,
                "reference_ms": theirs,
                "gb_per_s": rate,
                "share_of_copy": rate / copy_rate,
            }
        )
        print(
            f"{name:28} {ours:8.3f} ms, reference {theirs:8.3f} ms ({theirs / ours:4.1f}x), "
            f"{rate:6.0f} GB/s, {rate / copy_rate:4.0%} of copy"
        )
    return results


def compare_attention(sizes: Sizes, device: torch.device) -> list[dict[str, Any]]:
    """Time every path for self-attention, and ours and SDPA for text with a bias."""
    own = triton_kernels().attention
    shape = (3, sizes.tokens, sizes.heads, sizes.head_dim)
    query, key, value = torch.randn(shape, dtype=torch.bfloat16, device=device).unbind()
    lengths = Lengths([sizes.tokens], device)
    paths: dict[str, Callable[[], Tensor]] = {
        path: partial(attention_by(path, own), query, key, value, lengths, lengths)
        for path in available(device)
    }
    results = time_attention("self-attention", paths, 4 * sizes.tokens**2 * sizes.dim)
    noise, text = Lengths([sizes.noise], device), Lengths([TEXT_ROWS], device)
    inputs = query[: sizes.noise], key[:TEXT_ROWS], value[:TEXT_ROWS], noise, text
    bias = torch.zeros(TEXT_ROWS, dtype=torch.bfloat16, device=device)
    biased: dict[str, Callable[[], Tensor]] = {
        "sdpa": lambda: REFERENCE.attention(*inputs, bias),
        "triton": lambda: own(*inputs, bias),
    }
    flops = 4 * sizes.noise * TEXT_ROWS * sizes.dim
    return results + time_attention("attention to text", biased, flops)


def time_attention(
    name: str, paths: dict[str, Callable[[], Tensor]], flops: int
) -> list[dict[str, Any]]:
    results = []
    for path, call in paths.items():
        spent = measure(call)
        results.append(
            {"kernel": name, "path": path, "ms": spent, "tflop_per_s": flops / spent / 1e9}
        )
        print(f"{name:20} {path:7} {spent:8.3f} ms, {flops / spent / 1e9:6.0f} TFLOP/s")
    return results


def copy_bandwidth(device: torch.device) -> float:
    """Return the GB/s, read and written, of a copy far larger than the caches."""
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / measure(lambda: target.copy_(source)) / 1e6


def machine(device: torch.device) -> dict[str, str]:
    import triton

    return {
        "gpu": torch.cuda.get_device_name(device),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": str(torch.version.cuda),
    }


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="640x384", metavar="WIDTHxHEIGHT")
    parser.add_argument("--heads", type=int, default=40)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    return parser.parse_args(arguments)


def main() -> None:
    arguments = parse_arguments()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/micro/kernels.py needs a GPU, and torch finds none here")
    device = torch.device("cuda", torch.cuda.current_device())
    if (lack := triton_lack(device)) is not None:
        raise SystemExit(f"benchmarks/micro/kernels.py needs Triton, but {lack}")
    torch.manual_seed(0)
    sizes = session_sizes(arguments)
    copy_rate = copy_bandwidth(device)
    print(f"{machine(device)}; copy {copy_rate:.0f} GB/s; {sizes}")
    with torch.inference_mode():
        works = row_works(sizes, device) | sampler_works(sizes, arguments, device)
        sections = Sections(
            arguments.output,
            machine=machine(device),
            settings={k: str(v) for k, v in vars(arguments).items() if k != "output"},
            copy_gb_per_s=copy_rate,
        )
        sections.add("kernels", compare(works, copy_rate))
        sections.add("attention", compare_attention(sizes, device))


if __name__ == "__main__":
    main()
