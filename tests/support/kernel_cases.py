"""Calls of every kernel on reproducible inputs: for its reference, the interpreter and compilers.

A case takes the kernels to call, so both sides see the same inputs.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from helios_serve.kernels.fp8 import FP8
from helios_serve.kernels.registry import REFERENCE, Kernels, triton_kernels
from helios_serve.kernels.rope import PackedRope, Rope
from helios_serve.kernels.rows import Lengths, NormTable, PackRows, Run

EPS = 1e-6
LAYOUTS: dict[str, tuple[Run, ...]] = {
    "one run": (Run(0, 5, 1),),
    "one segment": (Run(0, 7, 0, is_history=True), Run(7, 10, 1)),
    "without history": (Run(0, 4, 2), Run(4, 9, 1)),
    "several": (
        Run(0, 3, 0, is_history=True),
        Run(3, 5, 2),
        Run(5, 6, 1),
        Run(6, 10, 3, is_history=True),
        Run(10, 13, 0),
    ),
}
NOT_AT_START = {"quantize_rows_kernel", "norm_silu_kernel"}
"""Kernels that a denoising worker does not compile at its start. Only some options use them."""
HEADS = {"3 x 32": (3, 32), "5 x 24": (5, 24), "11 x 128": (11, 128), "40 x 128": (40, 128)}


class Make(NamedTuple):
    """Makes inputs: values of `dtype`, held in `held`, on `device`."""

    dtype: torch.dtype
    device: torch.device = torch.device("cpu")
    held: torch.dtype | None = None

    def values(self, *shape: int, seed: int = 0, dtype: torch.dtype | None = None) -> Tensor:
        generator = torch.Generator().manual_seed(seed + sum(shape))
        drawn = torch.randn(shape, generator=generator).to(dtype or self.dtype)
        return drawn.to(self.device, dtype or self.held or self.dtype)

    def whole(self, bound: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        generator = torch.Generator().manual_seed(bound)
        return torch.randint(bound, shape, generator=generator, dtype=dtype).to(self.device)


Call = Callable[[Kernels, Make], Sequence[Tensor]]


def norm_table(make: Make, dim: int, rows: int = 4) -> NormTable:
    """Return a table like a block's, whose rows are strided slices of a larger tensor."""
    table = make.values(rows, 6, dim, seed=1, dtype=torch.float32)
    return NormTable(1 + table[:, 1], table[:, 0])


def norm_case(layout: Sequence[Run], dim: int, table_rows: int) -> Call:
    def call(kernels: Kernels, make: Make) -> list[Tensor]:
        rows = PackRows(layout, make.device)
        x = make.values(len(rows), dim)
        return [kernels.norm_modulate(x, rows, norm_table(make, dim, table_rows), EPS)]

    return call


def gated_case(layout: Sequence[Run], dim: int, *, noise_only: bool) -> Call:
    def call(kernels: Kernels, make: Make) -> list[Tensor]:
        rows = PackRows(layout, make.device)
        x, update = (make.values(len(rows), dim, seed=seed) for seed in (0, 1))
        gate = make.values(4, 6, dim, seed=2, dtype=torch.float32)[:, 2]
        norm = norm_table(make, dim, 1 if noise_only else 4)
        out = kernels.gated_residual_norm_(x, update, rows, gate, norm, EPS, noise_only=noise_only)
        return [x, out]

    return call


def noise_residual_case(layout: Sequence[Run], dim: int) -> Call:
    def call(kernels: Kernels, make: Make) -> list[Tensor]:
        rows = PackRows(layout, make.device)
        x, update = make.values(len(rows), dim), make.values(rows.num_noise, dim, seed=1)
        return [x, kernels.noise_residual_norm_(x, update, rows, norm_table(make, dim), EPS)]

    return call


def make_rope(make: Make, rows: PackRows, head_dim: int) -> PackedRope:
    """Return the rope of a pack of two sizes: entries with moduli up to one, from two tables."""
    pairs = (head_dim // 2 - head_dim // 3, head_dim // 6, head_dim // 3 - head_dim // 6)
    parts, first = [], len(rows) // 2
    for count in (first, len(rows) - first):
        drawn = make.values(7, head_dim // 2, 2, seed=count, dtype=torch.float32)
        table = torch.view_as_complex(drawn / 4)
        places = make.whole(7, count + 1, 3, dtype=torch.int32)
        parts.append((Rope(table, places, pairs), slice(1, None)))
    return PackedRope(parts)


def qk_case(layout: Sequence[Run], heads: tuple[int, int], *, scaled: bool) -> Call:
    def call(kernels: Kernels, make: Make) -> list[Tensor]:
        rows, dim = PackRows(layout, make.device), heads[0] * heads[1]
        query, key, _ = torch.split(make.values(len(rows), 3 * dim), dim, dim=1)
        weights = make.values(dim, seed=1), make.values(dim, seed=2)
        scale = make.values(heads[0], seed=3, dtype=torch.float32) if scaled else None
        rope = make_rope(make, rows, heads[1])
        return list(
            kernels.qk_norm_rope_(
                query, key, weights, rope, rows, heads[0], EPS, history_scale=scale
            )
        )

    return call


def norm_rope_case(
    layout: Sequence[Run], heads: tuple[int, int], *, rotated: bool, scaled: bool
) -> Call:
    def call(kernels: Kernels, make: Make) -> list[Tensor]:
        rows, dim = PackRows(layout, make.device), heads[0] * heads[1]
        rope = make_rope(make, rows, heads[1]) if rotated else None
        scale = make.values(heads[0], seed=3, dtype=torch.float32) if scaled else None
        x, weight = make.values(len(rows), dim), make.values(dim, seed=1)
        return [kernels.norm_rope_(x, weight, rope, heads[0], EPS, history_scale=scale, rows=rows)]

    return call


@contextmanager
def wide_offsets(kernels: Kernels) -> Iterator[None]:
    """Our attention takes every segment for one that needs offsets of 64 bits."""
    if kernels is REFERENCE:
        yield
        return
    from helios_serve.kernels.triton import attention

    before, attention.LARGEST_OFFSET = attention.LARGEST_OFFSET, 0
    try:
        yield
    finally:
        attention.LARGEST_OFFSET = before


def wide_case(case: Call) -> Call:
    def call(kernels: Kernels, make: Make) -> Sequence[Tensor]:
        with wide_offsets(kernels):
            return case(kernels, make)

    return call


def attention_case(
    queries: Sequence[int], keys: Sequence[int], heads: tuple[int, int], *, biased: bool
) -> Call:
    def call(kernels: Kernels, make: Make) -> list[Tensor]:
        lengths = Lengths(queries, make.device), Lengths(keys, make.device)
        query = make.values(sum(queries), *heads)
        dim = heads[0] * heads[1]
        key, value = torch.split(make.values(sum(keys), 2 * dim, seed=1), dim, dim=1)
        key, value = (part.view(sum(keys), *heads) for part in (key, value))
        bias = 3 * make.values(sum(keys), seed=2) if biased else None
        return [kernels.attention(query, key, value, *lengths, bias)]

    return call


def gather_case(places: int, width: int) -> Call:
    def call(kernels: Kernels, make: Make) -> list[Tensor]:
        pool, window = make.values(9, 16, width), make.whole(9, 20)
        return [kernels.gather_window(pool, window, make.whole(320, places))]

    return call


def stage_case(grid: tuple[int, int], noise_dtype: torch.dtype | None = None) -> Call:
    def call(kernels: Kernels, make: Make) -> list[Tensor]:
        patches = 9 * grid[0] * grid[1]
        rows = make.values(patches, 64)
        drawn = make.values(16, 4 * patches, 4, dtype=torch.float32)
        factor = make.values(4, 4, dtype=torch.float32)
        noise = noise_dtype or make.held or make.dtype
        return [kernels.enter_stage(rows, grid, (0.600120, 0.692612), drawn, factor, noise)]

    return call


def dmd_case(rows: int, next_sigma: float | None, latents: torch.dtype | None = None) -> Call:
    def call(kernels: Kernels, make: Make) -> list[Tensor]:
        sample, start = (make.values(rows, 64, seed=seed, dtype=latents) for seed in (0, 1))
        flow = make.values(rows, 64, seed=2)
        return [kernels.dmd_step(sample, flow, start, 0.7123456789, next_sigma)]

    return call


def quantize_case(rows: int, dim: int, dtype: torch.dtype, *, spare: int = 3) -> Call:
    """Rows of a tensor that is wider by `spare`, of which the first is zero, the last tiny."""

    def call(kernels: Kernels, make: Make) -> list[Tensor]:
        x = make.values(rows, dim + spare)[:, :dim]
        x[0] = 0
        x[-1] *= 2**-10
        quantized = kernels.quantize_rows(x, dtype)
        return [quantized.values.float(), quantized.scale]

    return call


def gelu_case(rows: int, dim: int, dtype: torch.dtype) -> Call:
    def call(kernels: Kernels, make: Make) -> list[Tensor]:
        activated = kernels.gelu_fp8(3 * make.values(rows, dim), dtype)
        return [activated.values.float(), activated.scale]

    return call


def fp8_case(case: Call, dtype: torch.dtype) -> Call:
    """The case with the norms whose results are in float8, or in `dtype`, and their scales."""

    def call(kernels: Kernels, make: Make) -> list[Tensor]:
        scales: list[Tensor] = []

        def quantized(kernel: Any) -> Any:
            def run(*arguments: Any, **options: Any) -> Tensor:
                values, scale = kernel(*arguments, **options, dtype=dtype)
                scales.append(scale)
                made: Tensor = values.float()
                return made

            return run

        chosen = kernels._replace(
            norm_modulate=quantized(kernels.norm_modulate_fp8),
            gated_residual_norm_=quantized(kernels.gated_residual_norm_fp8_),
            noise_residual_norm_=quantized(kernels.noise_residual_norm_fp8_),
        )
        return [*case(chosen, make), *scales]

    return call


def norm_silu_case(shape: tuple[int, int, int, int], past: int) -> Call:
    """Norm frames after `past` ones. One pixel is zero."""

    def call(kernels: Kernels, make: Make) -> list[Tensor]:
        frames, weight = make.values(*shape), make.values(shape[-1], seed=1)
        frames[0, 0, 0] = 0
        before = make.values(past, *shape[1:], seed=2) if past else None
        return [kernels.norm_silu(frames, weight, before)]

    return call


def small_cases() -> dict[str, Call]:
    """Return cases of all kernels with awkward sizes and few programs."""
    cases: dict[str, Call] = {}
    for name, layout in LAYOUTS.items():
        for size in ("3 x 32", "11 x 128"):
            heads = HEADS[size]
            dim, where = heads[0] * heads[1], f"{name}, {size}"
            cases[f"norm, {where}"] = norm_case(layout, dim, 4)
            cases[f"gated residual, {where}"] = gated_case(layout, dim, noise_only=False)
            cases[f"gated residual of noise, {where}"] = gated_case(layout, dim, noise_only=True)
            cases[f"noise residual, {where}"] = noise_residual_case(layout, dim)
            for kernel in ("norm", "gated residual", "gated residual of noise", "noise residual"):
                # Not to float8: the interpreter rounds towards zero there.
                plain = cases[f"{kernel}, {where}"]
                cases[f"{kernel} to FP8, {where}"] = fp8_case(plain, torch.float32)
            cases[f"qk, {where}"] = qk_case(layout, heads, scaled=False)
            cases[f"scaled qk, {where}"] = qk_case(layout, heads, scaled=True)
    for size in ("5 x 24", "40 x 128"):
        layout, heads = LAYOUTS["several"], HEADS[size]
        cases[f"norm by one row, {size}"] = norm_case(layout, heads[0] * heads[1], 1)
        cases[f"qk, {size}"] = qk_case(layout, heads, scaled=False)
        for rotated, scaled in ((False, False), (True, False), (True, True)):
            cases[f"norm, rotated {rotated}, scaled {scaled}, {size}"] = norm_rope_case(
                layout, heads, rotated=rotated, scaled=scaled
            )
    lengths = {"one": ((70,), (33,)), "several": ((1, 140, 7), (65, 1, 130))}
    for name, (queries, keys) in lengths.items():
        for biased in (False, True):
            for heads in ((1, 32), (2, 24)):
                cases[f"attention, {name}, biased {biased}, {heads}"] = attention_case(
                    queries, keys, heads, biased=biased
                )
    case = attention_case((1, 140, 7), (65, 1, 130), (2, 24), biased=True)
    cases["attention with wide offsets"] = wide_case(case)
    cases["gather"] = gather_case(77, 64)
    cases["gather narrow rows"] = gather_case(16, 24)
    cases["stage"] = stage_case((2, 3))
    cases["stage of one patch"] = stage_case((1, 1))
    cases["stage with noise in float16"] = stage_case((1, 2), torch.float16)
    for dim in (24, 176, 1000):
        cases[f"quantize {dim}"] = quantize_case(5, dim, torch.float32)
        cases[f"GELU to FP8, {dim}"] = gelu_case(5, dim, torch.float32)
    for channels in (8, 24, 96):
        for past in (0, 2):
            case = norm_silu_case((3, 5, 7, channels), past)
            cases[f"norm and SiLU, {channels} channels, {past} past"] = case
    for next_sigma in (None, 0.31234567891):
        cases[f"DMD to {next_sigma}"] = dmd_case(50, next_sigma)
        cases[f"DMD of float32 to {next_sigma}"] = dmd_case(7, next_sigma, torch.float32)
    return cases


def large_cases() -> dict[str, Call]:
    """Return cases with the published model's widths on a few rows, to test compilation."""
    layout, heads = LAYOUTS["several"], HEADS["40 x 128"]
    cases: dict[str, Call] = {
        "norm": norm_case(layout, 5120, 4),
        "gated residual": gated_case(layout, 5120, noise_only=False),
        "gated residual of noise": gated_case(layout, 5120, noise_only=True),
        "noise residual": noise_residual_case(layout, 5120),
        "qk": qk_case(layout, heads, scaled=False),
        "scaled qk": qk_case(layout, heads, scaled=True),
        "rotated query": norm_rope_case(layout, heads, rotated=True, scaled=False),
        "query of text": norm_rope_case(layout, heads, rotated=False, scaled=False),
        "self-attention": attention_case((200, 96), (300, 130), heads, biased=False),
        "attention to text": attention_case((200, 96), (43, 43), heads, biased=True),
        "attention to long text": attention_case((200, 96), (515, 43), heads, biased=True),
        "self-attention of huge segments": wide_case(
            attention_case((200, 96), (300, 130), heads, biased=False)
        ),
        "gather": gather_case(4800, 64),
        "quantize": quantize_case(296, 5120, FP8),
        "quantize rows end to end": quantize_case(296, 5120, FP8, spare=0),
        "quantize wide rows": quantize_case(296, 13824, FP8),
        "GELU to FP8": gelu_case(296, 13824, FP8),
        "norm to FP8": fp8_case(norm_case(layout, 5120, 4), FP8),
        "gated residual to FP8": fp8_case(gated_case(layout, 5120, noise_only=False), FP8),
        "gated residual of noise to FP8": fp8_case(gated_case(layout, 5120, noise_only=True), FP8),
        "noise residual to FP8": fp8_case(noise_residual_case(layout, 5120), FP8),
        "norm and SiLU of 96 channels": norm_silu_case((4, 24, 40, 96), 2),
        "norm and SiLU of 192 channels": norm_silu_case((4, 24, 40, 192), 2),
        "norm and SiLU of 384 channels": norm_silu_case((4, 24, 40, 384), 2),
        "norm and SiLU of the first frame": norm_silu_case((1, 48, 80, 384), 0),
        "stage": stage_case((12, 20)),
        "stage from float32": lambda kernels, make: stage_case((12, 20), make.dtype)(
            kernels, make._replace(dtype=torch.float32)
        ),
        "DMD": dmd_case(2160, 0.4512),
        "last step of DMD": dmd_case(2160, None, torch.float32),
    }
    return cases


def error(got: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest difference, relative to the largest value if that is above one."""
    worst = 0.0
    for one, other in zip(got, expected, strict=True):
        assert one.shape == other.shape
        scale = max(1.0, other.abs().max().item())
        worst = max(worst, (one.double() - other.double()).abs().max().item() / scale)
    return worst


def interpreter_errors() -> dict[str, float]:
    """Return the error of each kernel against its reference, in Triton's interpreter."""
    assert os.environ["TRITON_INTERPRET"] == "1"
    errors = {}
    for dtype in (torch.float32, torch.float16):
        make = Make(dtype)
        for name, call in small_cases().items():
            expected, got = call(REFERENCE, make), call(triton_kernels(), make)
            assert [item.dtype for item in got] == [item.dtype for item in expected], name
            errors[f"{name}, {dtype}"] = error(got, expected)
    return errors
