"""The ways to compute exact attention, by name, and which of them a device can run.

Nothing here leaves the choice to torch: SDPA's own order differs between versions, and its switches
are global to the process, so that another thread's attention would follow them. Functions are
called by name, and every path but "sdpa" says which one that is.
"""

from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from helios_serve.kernels.rows import Lengths, join

AttentionPath = Literal["flash3", "cudnn", "varlen", "flash2", "triton", "cpu", "sdpa"]
"""FlashAttention 3, cuDNN, torch's varlen_attn, FlashAttention 2, our Triton kernel, torch's flash
attention for CPUs, and whatever torch's SDPA chooses."""

GPU = "cuda"
"""The kind of device with GPU libraries; torch uses the name for AMD GPUs too."""


class Support(NamedTuple):
    """The GPUs that a path runs on, by the major number of their compute capability.

    `preferred` are those on which it is faster than the paths after it. `modules` may each provide
    `function`; the first one that is installed does.
    """

    capabilities: range
    preferred: range
    modules: tuple[str, ...] = ()
    function: str = ""
    nvidia_only: bool = True


SUPPORT: Mapping[AttentionPath, Support] = {
    "flash3": Support(
        range(9, 10),
        range(9, 10),
        ("flash_attn_interface", "fa3_fwd_interface"),
        "flash_attn_varlen_func",
    ),
    "cudnn": Support(range(8, 100), range(9, 100)),
    "varlen": Support(range(8, 100), range(8, 100), ("torch.nn.attention.varlen",), "varlen_attn"),
    "flash2": Support(
        range(8, 100),
        range(8, 100),
        ("flash_attn",),
        "flash_attn_varlen_func",
        nvidia_only=False,
    ),
}
"""The paths that only GPUs run besides Triton's, the fastest first. FlashAttention 3 is written for
Hopper. torch's varlen_attn and FlashAttention 2 have the kernels of capability 8.0 on all GPUs."""


class Found(NamedTuple):
    """A function of a library, and the library's name and version for logs."""

    function: Callable[..., Any]
    library: str


def library_of(path: AttentionPath) -> Found | str:
    """Return the function of the first library of `path` that works, or why there is none."""
    reasons = []
    support = SUPPORT[path]
    for module in support.modules:
        if not is_installed(module):
            reasons.append(f"{module} is not installed")
            continue
        try:
            found = getattr(import_module(module), support.function)
        except Exception as error:  # built for another torch, or without its CUDA libraries
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            reasons.append(f"{module} cannot be imported: {reason}")
            continue
        return Found(found, f"{module} {version_of(module)}".strip())
    return " and ".join(reasons)


def lack_on_gpu(path: AttentionPath, device: torch.device) -> str | None:
    """Why `device` cannot run one of the paths in SUPPORT, or None if it can."""
    support = SUPPORT[path]
    if device.type != GPU:
        return f"it needs an NVIDIA{'' if support.nvidia_only else ' or AMD'} GPU"
    if torch.version.hip is not None:
        if support.nvidia_only:
            return "it needs an NVIDIA GPU"
    else:
        major, minor = torch.cuda.get_device_capability(device)
        if major not in support.capabilities:
            first, last = support.capabilities[0], support.capabilities[-1]
            needed = f"{first}.x" if first == last else f"{first}.0 or higher"
            return f"it needs compute capability {needed}, and {device} has {major}.{minor}"
    if path == "cudnn":
        return "this torch has no cuDNN" if cudnn_version() is None else None
    found = library_of(path)
    return found if isinstance(found, str) else None


def fastest_on_gpu(device: torch.device) -> tuple[AttentionPath, ...]:
    """The paths in SUPPORT that are preferred on `device`, the fastest first."""
    if torch.version.hip is not None:
        return tuple(path for path, support in SUPPORT.items() if not support.nvidia_only)
    major, _ = torch.cuda.get_device_capability(device)
    return tuple(path for path, support in SUPPORT.items() if major in support.preferred)


def cudnn_version() -> int | None:
    """The version of torch's cuDNN, such as 91900; None without one."""
    cudnn: Any = torch.backends.cudnn
    return cudnn.version() if cudnn.is_available() else None


def is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package is not installed
        return False


@cache
def version_of(module: str) -> str:
    """The version of the distribution that has `module`, or "" if that is not known."""
    name = module.partition(".")[0]
    try:
        return version(packages_distributions().get(name, [name])[0])
    except PackageNotFoundError:
        return ""


class LibraryAttention(NamedTuple):
    """Attention by a library, and by two others where the library cannot.

    `biased` attends where there is a bias, `unbiased` in fp32 without one. All are
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
        if self.path == "cudnn":
            return by_segment(cudnn_attend, query, key, value, queries, keys)
        # All three libraries take these arguments in this order.
        cumulative = queries.cumulative, keys.cumulative
        attend = function_of(self.path)
        mixed = attend(query, key, value, *cumulative, queries.longest, keys.longest)
        out: Tensor = mixed[0] if isinstance(mixed, tuple) else mixed  # some return sums too
        return out.flatten(1)


@cache
def function_of(path: AttentionPath) -> Callable[..., Any]:
    """The library's function of `path`. Raises ValueError if no library has it."""
    found = library_of(path)
    if isinstance(found, str):
        raise ValueError(f"attention by {path}: {found}")
    return found.function


def cpu_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    queries: Lengths,
    keys: Lengths,
    bias: Tensor | None = None,
) -> Tensor:
    """See `registry.PackedAttention`: torch's flash attention for CPUs, segment by segment."""
    return by_segment(cpu_attend, query, key, value, queries, keys, bias)


def sdpa_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    queries: Lengths,
    keys: Lengths,
    bias: Tensor | None = None,
) -> Tensor:
    """See `registry.PackedAttention`: what torch's SDPA chooses, segment by segment."""
    return by_segment(sdpa_attend, query, key, value, queries, keys, bias)


Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""Attention of one segment, (1, heads, rows, head_dim) each, with a mask (rows, key rows) that is
added to the logits, or None."""


def by_segment(
    attend: Attend,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    queries: Lengths,
    keys: Lengths,
    bias: Tensor | None = None,
) -> Tensor:
    """Attend segment by segment; the arguments are those of `registry.PackedAttention`."""
    parts = []
    for rows, key_rows in zip(queries.slices, keys.slices, strict=True):
        batch = [
            part.transpose(0, 1)[None] for part in (query[rows], key[key_rows], value[key_rows])
        ]
        mask = None if bias is None else bias[key_rows].expand(batch[0].shape[2], -1)
        mixed = attend(batch[0], batch[1], batch[2], mask)
        parts.append(mixed[0].transpose(0, 1).flatten(1))
    return join(parts)


def sdpa_attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def cpu_attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    mixed: Tensor = attend(query, key, value, 0.0, False, attn_mask=mask)[0]
    return mixed


def cudnn_attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    attend = torch.ops.aten._scaled_dot_product_cudnn_attention
    # Without the sums that only gradients need.
    mixed: Tensor = attend(query, key, value, mask, False)[0]
    return mixed
