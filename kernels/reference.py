"""The kernels in plain torch: exact, on any device, and what every faster one is tested against.

Rows are tokens. A `Run` is a contiguous stretch of rows that share one row of the modulation
table, so nothing is ever expanded to tokens. Layer norms, modulation and gated residuals are
computed in fp32 whatever the dtype of the rows, as the published model does.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Run(NamedTuple):
    """Rows [start, stop) of a packed sequence, modulated by row `table_row`."""

    start: int
    stop: int
    table_row: int

    @property
    def rows(self) -> slice:
        return slice(self.start, self.stop)


def gather_window(pool: Tensor, row_index: Tensor) -> Tensor:
    """Patches of a history window, straight from the pool.

    `pool` is (blocks, 16, 64) and `row_index` (patches, rows a patch) indexes its rows, blocks end
    to end; returns (patches, rows a patch * 64), ready for one matmul with the patch weights.
    """
    rows = pool.flatten(0, 1)
    return rows.index_select(0, row_index.flatten()).view(len(row_index), -1)


def norm_modulate(
    x: Tensor, runs: Sequence[Run], scale: Tensor, shift: Tensor, eps: float
) -> Tensor:
    """layer_norm(x) * (1 + scale) + shift, with scale and shift (table rows, dim) in fp32."""

    def one(run: Run) -> Tensor:
        rows = x[run.rows].float()
        weight, bias = 1 + scale[run.table_row], shift[run.table_row]
        return F.layer_norm(rows, rows.shape[-1:], weight, bias, eps).to(x.dtype)

    return join([one(run) for run in runs])


def gated_residual_(x: Tensor, update: Tensor, runs: Sequence[Run], gate: Tensor) -> None:
    """x += update * gate in place, with gate (table rows, dim) in fp32."""
    for run in runs:
        rows, change, factor = x[run.rows], update[run.rows], gate[run.table_row]
        if x.dtype == torch.float32:
            rows.addcmul_(change, factor)
        else:
            rows.copy_(torch.addcmul(rows.float(), change.float(), factor))


def qk_norm_rope(x: Tensor, weight: Tensor, rope: Tensor | None, heads: int, eps: float) -> Tensor:
    """RMS norm across all heads, then rotary embedding of neighbouring pairs; may reuse `x`.

    `x` is (rows, heads * head_dim), `rope` complex64 (rows, head_dim / 2) or None; returns
    (rows, heads, head_dim). Pooled rope entries have a modulus under one, which is intended.
    """
    if x.dtype == torch.float32:
        # In place: twice as fast as F.rms_norm, which takes five passes on a CPU.
        square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_() / x.shape[-1]
        normed = x.mul_(square.add_(eps).rsqrt_()).mul_(weight)
    else:
        normed = F.rms_norm(x, x.shape[-1:], weight, eps)
    if rope is None:
        return normed.view(len(x), heads, -1)
    pairs = torch.view_as_complex(normed.float().view(len(x), heads, -1, 2))
    pairs.mul_(rope.unsqueeze(1))
    return torch.view_as_real(pairs).flatten(-2).to(x.dtype)


def attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """Full attention of one segment.

    query (m, heads, head_dim); key, value (n, heads, head_dim); `bias` (n,), of the same dtype as
    they must have it on a GPU, is added to the logits of each key. Returns (m, heads * head_dim).
    """
    mask = None if bias is None else bias.expand(len(query), -1)
    mixed = F.scaled_dot_product_attention(
        query.transpose(0, 1)[None],
        key.transpose(0, 1)[None],
        value.transpose(0, 1)[None],
        attn_mask=mask,
    )
    return mixed[0].transpose(0, 1).flatten(1)


def join(parts: Sequence[Tensor]) -> Tensor:
    """Parts end to end; a single part is returned as it is."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
