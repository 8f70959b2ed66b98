"""Attention by libraries that take segments end to end, in half precision and without a bias."""

from importlib import import_module
from typing import Any

from torch import Tensor

from helios_serve.kernels.backend import LIBRARIES, AttentionPath
from helios_serve.kernels.rows import Lengths

FUNCTIONS: dict[AttentionPath, str] = {
    "flash3": "flash_attn_varlen_func",
    "varlen": "varlen_attn",
    "flash2": "flash_attn_varlen_func",
}


def attention(
    path: AttentionPath, query: Tensor, key: Tensor, value: Tensor, queries: Lengths, keys: Lengths
) -> Tensor:
    """As `reference.attention`; all three libraries take these arguments in this order."""
    attend: Any = getattr(import_module(LIBRARIES[path]), FUNCTIONS[path])
    cumulative = queries.cumulative, keys.cumulative
    mixed = attend(query, key, value, *cumulative, queries.longest, keys.longest)
    out: Tensor = mixed[0] if isinstance(mixed, tuple) else mixed  # some return their sums too
    return out.flatten(1)
