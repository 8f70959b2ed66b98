"""Attention by libraries that take packed segments, in half precision and without a bias."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, NamedTuple

from torch import Tensor

from helios_serve.kernels.backend import LIBRARIES, AttentionPath
from helios_serve.kernels.rows import Lengths

FUNCTIONS: Mapping[AttentionPath, str] = {
    "flash3": "flash_attn_varlen_func",
    "varlen": "varlen_attn",
    "flash2": "flash_attn_varlen_func",
}


class LibraryAttention(NamedTuple):
    """Attention by the library of `path`, and by two others where the library cannot.

    `biased` attends where there is a bias, `unbiased` in fp32 without one. All three are
    `registry.PackedAttention`.
    """

    path: AttentionPath
    unbiased: Callable[..., Tensor]
    biased: Callable[..., Tensor]

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        queries: Lengths,
        keys: Lengths,
        bias: Tensor | None = None,
    ) -> Tensor:
        if bias is not None:
            return self.biased(query, key, value, queries, keys, bias)
        if query.dtype.itemsize != 2:
            return self.unbiased(query, key, value, queries, keys)
        # All three libraries take these arguments in this order.
        attend: Any = getattr(import_module(LIBRARIES[self.path]), FUNCTIONS[self.path])
        cumulative = queries.cumulative, keys.cumulative
        mixed = attend(query, key, value, *cumulative, queries.longest, keys.longest)
        out: Tensor = mixed[0] if isinstance(mixed, tuple) else mixed  # some return sums too
        return out.flatten(1)
