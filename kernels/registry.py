"""The interface of every kernel, and the implementations that a device runs.

Models call `kernels_of(tensor).norm_modulate(...)`. Each kernel has a protocol here, a torch
implementation in `reference` and a Triton one in a module of `triton`; mypy checks both against
the protocol. Rows are tokens of a packed sequence. A trailing underscore: in place.
"""

from functools import cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from helios_serve.kernels import meta, reference
from helios_serve.kernels.attention import (
    AttentionPath,
    LibraryAttention,
    cpu_attention,
    sdpa_attention,
)
from helios_serve.kernels.backend import AUTO, KernelChoice, choose_kernels
from helios_serve.kernels.fp8 import FP8, Quantized
from helios_serve.kernels.rope import PackedRope
from helios_serve.kernels.rows import Lengths, NormTable, PackRows


class GatherWindow(Protocol):
    def __call__(self, pool: Tensor, window: Tensor, places: Tensor) -> Tensor:
        """Read rows of a session's history through its block table, as PagedAttention does.

        `pool` is (blocks, rows per block, width), contiguous; `window` int64 (blocks of the
        history,) is the block table; `places` int64 (n,) holds, for each row to read, its position
        in the block table * rows per block + its row in the block. Returns new rows (n, width).

        Source: PagedAttention (arXiv 2309.06180), with Helios' windows.
        """


class NormModulate(Protocol):
    def __call__(self, x: Tensor, rows: PackRows, norm: NormTable, eps: float) -> Tensor:
        """Layer norm of each row, multiplied and shifted by its row of a table.

        `x` is (rows, dim) at any row stride; `norm` holds the fp32 tables. Computes in fp32 and
        returns new rows in the dtype of `x`.

        Source: "Flash Norm" of Helios (arXiv 2603.04379).
        """


class GatedResidualNorm(Protocol):
    def __call__(
        self,
        x: Tensor,
        update: Tensor,
        rows: PackRows,
        gate: Tensor,
        norm: NormTable,
        eps: float,
        *,
        noise_only: bool = False,
    ) -> Tensor:
        """Add `update * gate` to `x` in place, then norm the sum as `norm_modulate` does.

        `x` and `update` are (rows, dim) in one dtype, `gate` fp32 (table rows, dim). The sum is
        computed in fp32 and rounded to the dtype of `x` before it is normed. Returns new rows
        (rows, dim), or with `noise_only` those of the noise rows alone, end to end.

        Source: the blocks of Helios' transformer (arXiv 2603.04379).
        """


class NoiseResidualNorm(Protocol):
    def __call__(
        self, x: Tensor, update: Tensor, rows: PackRows, norm: NormTable, eps: float
    ) -> Tensor:
        """Add `update` to the noise rows of `x` in place, then norm all of `x`.

        `x` is (rows, dim), `update` (noise rows, dim) in the same dtype. Rounds and returns as
        `gated_residual_norm_` does.

        Source: Helios' transformer (arXiv 2603.04379), where only noise attends to text.
        """


class NormRope(Protocol):
    def __call__(
        self,
        x: Tensor,
        weight: Tensor,
        rope: PackedRope | None,
        heads: int,
        eps: float,
        *,
        history_scale: Tensor | None = None,
        rows: PackRows | None = None,
    ) -> Tensor:
        """RMS norm across all heads, then rotary embedding of neighbouring pairs.

        `x` is (rows, heads * head_dim) at any row stride, `weight` (heads * head_dim,) in its
        dtype. Pooled entries of `rope` have a modulus below one, which is intended; with None
        nothing is rotated. `history_scale` (heads,) multiplies the history rows of `rows`, which
        it requires. Norm and rotation are computed in fp32, each rounded to the dtype of `x`.
        Returns (rows, heads, head_dim), which may share the memory of `x`: do not read `x` again.

        Source: "Flash RoPE" of Helios (arXiv 2603.04379); RoFormer (arXiv 2104.09864).
        """


class QkNormRope(Protocol):
    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        weights: tuple[Tensor, Tensor],
        rope: PackedRope,
        rows: PackRows,
        heads: int,
        eps: float,
        *,
        history_scale: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """`norm_rope_` of the queries and keys of the same rows; `history_scale` is for keys only.

        `weights` are those of queries and of keys. Returns queries and keys as `norm_rope_` does.
        """


class PackedAttention(Protocol):
    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        queries: Lengths,
        keys: Lengths,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Full attention of each segment's queries to the segment's own keys.

        `query` is (rows, heads, head_dim), `key` and `value` (key rows, heads, head_dim) in the
        same dtype, at any row stride; `queries` and `keys` are the lengths of the segments, each
        with at least one key. `bias` (key rows,), in the dtype of the keys, is added to the logits
        of each key. Returns new rows (rows, heads * head_dim); softmax and sums are fp32.

        Source: FlashAttention 2 (arXiv 2307.08691) and its libraries.
        """


class EnterStage(Protocol):
    def __call__(
        self,
        rows: Tensor,
        grid: tuple[int, int],
        weights: tuple[float, float],
        drawn: Tensor,
        factor: Tensor,
        noise_dtype: torch.dtype,
    ) -> Tensor:
        """Upsample latents to the next pyramid stage and add noise correlated within patches.

        `rows` (n, 4 * channels) are patches of 2 x 2 pixels, laid out (y, x, channel), `grid`
        (rows, columns) of them per frame. Each pixel becomes a patch of four equal pixels, times
        `weights[0]`; the noise, times `weights[1]`, is fp32 `drawn` (channels, 4 * n, 4) @
        `factor`.T (4, 4), rounded to `noise_dtype`. Returns new rows (4 * n, 4 * channels) in the
        dtype that `rows` and noise promote to.

        Source: the stage transitions of Pyramidal Flow Matching (arXiv 2410.05954), as in
        diffusers' HeliosPyramidPipeline.
        """


class DmdStep(Protocol):
    def __call__(
        self, latents: Tensor, flow: Tensor, start: Tensor, sigma: float, next_sigma: float | None
    ) -> Tensor:
        """One step of the DMD sampler: predict x0, then noise it to `next_sigma` with `start`.

        The three tensors have one shape. x0 = latents - sigma * flow is computed in fp64 and
        rounded to the dtype of `flow`; with `next_sigma` None it is returned. Otherwise returns
        (1 - next_sigma) * x0 + next_sigma * start, computed in fp64, in the dtype of `start`.

        Source: diffusers' HeliosDMDScheduler; DMD2 (arXiv 2405.14867).
        """


class QuantizeRows(Protocol):
    def __call__(self, rows: Tensor, dtype: torch.dtype = FP8) -> Quantized:
        """Divide each row by a scale that puts its largest entry at the largest float8.

        `rows` is (rows, n) at any row stride. Returns values (rows, n) and fp32 scales (rows, 1).
        Rounding to float8 changes an entry by at most 1/16 of its value; for entries below 1/28672
        of their row's largest, by at most 1/16 of that bound. With another `dtype` the quotients
        are not rounded to float8.

        Source: dynamic row-wise scaling, as torch._scaled_mm takes it.
        """


class NormModulateFp8(Protocol):
    def __call__(
        self, x: Tensor, rows: PackRows, norm: NormTable, eps: float, dtype: torch.dtype = FP8
    ) -> Quantized:
        """`quantize_rows` of `norm_modulate`: the rows in between are rounded and not written."""


class GatedResidualNormFp8(Protocol):
    def __call__(
        self,
        x: Tensor,
        update: Tensor,
        rows: PackRows,
        gate: Tensor,
        norm: NormTable,
        eps: float,
        *,
        noise_only: bool = False,
        dtype: torch.dtype = FP8,
    ) -> Quantized:
        """`quantize_rows` of `gated_residual_norm_`, likewise."""


class NoiseResidualNormFp8(Protocol):
    def __call__(
        self,
        x: Tensor,
        update: Tensor,
        rows: PackRows,
        norm: NormTable,
        eps: float,
        dtype: torch.dtype = FP8,
    ) -> Quantized:
        """`quantize_rows` of `noise_residual_norm_`, likewise."""


class GeluFp8(Protocol):
    def __call__(self, rows: Tensor, dtype: torch.dtype = FP8) -> Quantized:
        """`quantize_rows` of GELU, its tanh form, which is rounded in between as torch does."""


class NormSilu(Protocol):
    def __call__(self, frames: Tensor, weight: Tensor, past: Tensor | None) -> Tensor:
        """RMS norm over the channels of each pixel, times `weight`, SiLU, after past frames.

        `frames` is (n, height, width, channels), contiguous, `weight` (channels,) in its dtype.
        `past` (k, height, width, channels) are results of earlier calls. Computes in fp32, or in
        fp64 for fp64, and rounds once. Returns new frames (k + n, height, width, channels): the
        past ones, followed by those made of `frames`.

        Source: the blocks of Wan 2.1's VAE (arXiv 2503.20314), as in diffusers' AutoencoderKLWan.
        """


class NormKernels(NamedTuple):
    """The norms of a block. All of them return rows in the dtype of x, or all in float8."""

    modulate: NormModulate | NormModulateFp8
    gated_residual_: GatedResidualNorm | GatedResidualNormFp8
    noise_residual_: NoiseResidualNorm | NoiseResidualNormFp8


class Kernels(NamedTuple):
    """Every kernel by one implementation.

    `attention` is self-attention, by the path that was chosen for the device. `text_attention` is
    the backend's own: text has few keys, of any number, and mostly a bias.
    """

    gather_window: GatherWindow
    norm_modulate: NormModulate
    gated_residual_norm_: GatedResidualNorm
    noise_residual_norm_: NoiseResidualNorm
    norm_rope_: NormRope
    qk_norm_rope_: QkNormRope
    attention: PackedAttention
    text_attention: PackedAttention
    enter_stage: EnterStage
    dmd_step: DmdStep
    quantize_rows: QuantizeRows
    norm_modulate_fp8: NormModulateFp8
    gated_residual_norm_fp8_: GatedResidualNormFp8
    noise_residual_norm_fp8_: NoiseResidualNormFp8
    gelu_fp8: GeluFp8
    norm_silu: NormSilu

    def norms(self, *, in_fp8: bool) -> NormKernels:
        """The norms whose results are in float8, or the others."""
        if in_fp8:
            return NormKernels(
                self.norm_modulate_fp8, self.gated_residual_norm_fp8_, self.noise_residual_norm_fp8_
            )
        return NormKernels(self.norm_modulate, self.gated_residual_norm_, self.noise_residual_norm_)


REFERENCE = Kernels(
    gather_window=reference.gather_window,
    norm_modulate=reference.norm_modulate,
    gated_residual_norm_=reference.gated_residual_norm_,
    noise_residual_norm_=reference.noise_residual_norm_,
    norm_rope_=reference.norm_rope_,
    qk_norm_rope_=reference.qk_norm_rope_,
    attention=sdpa_attention,
    text_attention=sdpa_attention,
    enter_stage=reference.enter_stage,
    dmd_step=reference.dmd_step,
    quantize_rows=reference.quantize_rows,
    norm_modulate_fp8=reference.norm_modulate_fp8,
    gated_residual_norm_fp8_=reference.gated_residual_norm_fp8_,
    noise_residual_norm_fp8_=reference.noise_residual_norm_fp8_,
    gelu_fp8=reference.gelu_fp8,
    norm_silu=reference.norm_silu,
)


META = Kernels(
    gather_window=meta.gather_window,
    norm_modulate=meta.norm_modulate,
    gated_residual_norm_=meta.gated_residual_norm_,
    noise_residual_norm_=meta.noise_residual_norm_,
    norm_rope_=meta.norm_rope_,
    qk_norm_rope_=meta.qk_norm_rope_,
    attention=meta.attention,
    text_attention=meta.attention,
    enter_stage=meta.enter_stage,
    dmd_step=meta.dmd_step,
    quantize_rows=meta.quantize_rows,
    norm_modulate_fp8=meta.norm_modulate_fp8,
    gated_residual_norm_fp8_=meta.gated_residual_norm_fp8_,
    noise_residual_norm_fp8_=meta.noise_residual_norm_fp8_,
    gelu_fp8=meta.gelu_fp8,
    norm_silu=meta.norm_silu,
)


@cache
def triton_kernels() -> Kernels:
    """The Triton kernels. Raises ModuleNotFoundError if triton is not installed."""
    from helios_serve.kernels.triton.attention import attention
    from helios_serve.kernels.triton.gather_window import gather_window
    from helios_serve.kernels.triton.norm import (
        gated_residual_norm_,
        gated_residual_norm_fp8_,
        noise_residual_norm_,
        noise_residual_norm_fp8_,
        norm_modulate,
        norm_modulate_fp8,
    )
    from helios_serve.kernels.triton.norm_rope import norm_rope_, qk_norm_rope_
    from helios_serve.kernels.triton.norm_silu import norm_silu
    from helios_serve.kernels.triton.quantize_rows import gelu_fp8, quantize_rows
    from helios_serve.kernels.triton.sampler import dmd_step, enter_stage

    return Kernels(
        gather_window=gather_window,
        norm_modulate=norm_modulate,
        gated_residual_norm_=gated_residual_norm_,
        noise_residual_norm_=noise_residual_norm_,
        norm_rope_=norm_rope_,
        qk_norm_rope_=qk_norm_rope_,
        attention=attention,
        text_attention=attention,
        enter_stage=enter_stage,
        dmd_step=dmd_step,
        quantize_rows=quantize_rows,
        norm_modulate_fp8=norm_modulate_fp8,
        gated_residual_norm_fp8_=gated_residual_norm_fp8_,
        noise_residual_norm_fp8_=noise_residual_norm_fp8_,
        gelu_fp8=gelu_fp8,
        norm_silu=norm_silu,
    )


def kernels_of(tensor: Tensor, attention: str = AUTO) -> Kernels:
    """The kernels of the tensor's device, as `attention`, the environment and `backend` choose.

    Those of the meta device compute shapes. Raises ValueError if the device cannot run what is
    requested.
    """
    if tensor.device.type == "meta":
        return META
    return implement(choose_kernels(tensor.device, attention))


@cache
def implement(choice: KernelChoice) -> Kernels:
    """The kernels of a backend, with the chosen attention."""
    kernels = REFERENCE if choice.backend == "reference" else triton_kernels()
    chosen = attention_by(choice.attention, kernels.attention)
    # What a CPU runs takes a bias as well.
    text = chosen if choice.attention == "cpu" else kernels.text_attention
    return kernels._replace(attention=chosen, text_attention=text)


def attention_by(path: AttentionPath, own: PackedAttention) -> PackedAttention:
    """The attention of `path`, where `own` is the backend's."""
    match path:
        case "sdpa":
            return sdpa_attention
        case "cpu":
            return cpu_attention
        case "triton":
            return own
        case _:
            return LibraryAttention(path, unbiased=sdpa_attention, biased=own)
