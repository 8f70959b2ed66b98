"""Chooses the kernels and the attention of a device: by what it can run and by the environment.

The only module of this package that names a kind of device. Choices are cached per device.
"""

import os
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from helios_serve.kernels.rows import Lengths

Backend = Literal["reference", "triton"]
AttentionPath = Literal["flash3", "varlen", "flash2", "sdpa", "triton"]
FASTEST_FIRST: tuple[AttentionPath, ...] = ("flash3", "varlen", "flash2", "triton")
ATTENTION_PATHS: tuple[AttentionPath, ...] = (*FASTEST_FIRST, "sdpa")
"""FlashAttention 3, torch's varlen_attn, FlashAttention 2, ours in Triton, SDPA per segment."""

KERNELS_VARIABLE, ATTENTION_VARIABLE = "HELIOS_KERNELS", "HELIOS_ATTENTION"
TRITON_DEVICE = "cuda"
"""The kind of device with Triton as the default; torch uses the name for AMD GPUs too."""

LIBRARIES: Mapping[AttentionPath, str] = {
    "flash3": "flash_attn_interface",
    "varlen": "torch.nn.attention.varlen",
    "flash2": "flash_attn",
}
CAPABILITIES: Mapping[AttentionPath, range] = {
    "flash3": range(9, 10),
    "varlen": range(8, 100),
    "flash2": range(8, 100),
}
"""Major compute capabilities that each library supports; FlashAttention 3 is for Hopper."""
FUNCTIONS: Mapping[AttentionPath, str] = {
    "flash3": "flash_attn_varlen_func",
    "varlen": "varlen_attn",
    "flash2": "flash_attn_varlen_func",
}


class KernelChoice(NamedTuple):
    """The backend of a device, and its attention in half precision without a bias."""

    backend: Backend
    attention: AttentionPath

    def __str__(self) -> str:
        return f"{self.backend} kernels, attention by {self.attention}"


def choose_kernels(device: torch.device) -> KernelChoice:
    """Choose the kernels of `device`.

    Raises ValueError if an environment variable is unknown or requests what it cannot run.
    """
    return _choose(
        device, os.environ.get(KERNELS_VARIABLE, ""), os.environ.get(ATTENTION_VARIABLE, "")
    )


@lru_cache(maxsize=16)
def _choose(device: torch.device, kernels: str, attention: str) -> KernelChoice:
    backend = choose_backend(device, kernels)
    return KernelChoice(backend, choose_attention(device, attention, backend))


def choose_backend(device: torch.device, wish: str) -> Backend:
    """The backend that `wish` names; without one, Triton on GPUs where it is installed."""
    lack = triton_lack(device)
    match wish:
        case "":
            return "triton" if device.type == TRITON_DEVICE and lack is None else "reference"
        case "reference":
            return "reference"
        case "triton":
            if lack is None:
                return "triton"
            raise ValueError(f"{KERNELS_VARIABLE}: got triton on {device}, but {lack}")
    raise ValueError(f"{KERNELS_VARIABLE}: got {wish!r}, expected reference or triton")


def choose_attention(device: torch.device, wish: str, backend: Backend) -> AttentionPath:
    """The path that `wish` names; without one, the fastest available, or SDPA with references."""
    if not wish:
        faster = ("sdpa",) if backend == "reference" else FASTEST_FIRST
        return next(path for path in faster if runs(path, device))
    for path in ATTENTION_PATHS:
        if path == wish:
            if runs(path, device):
                return path
            raise ValueError(f"{ATTENTION_VARIABLE}: got {wish}, which {device} cannot run")
    raise ValueError(
        f"{ATTENTION_VARIABLE}: got {wish!r}, expected one of {', '.join(ATTENTION_PATHS)}"
    )


def runs(path: AttentionPath, device: torch.device) -> bool:
    """Whether `device` can run `path`."""
    if path == "sdpa":
        return True
    if path == "triton":
        return triton_lack(device) is None
    if device.type != TRITON_DEVICE or not is_installed(LIBRARIES[path]):
        return False
    major, _ = torch.cuda.get_device_capability(device)
    return major in CAPABILITIES[path]


def triton_lack(device: torch.device) -> str | None:
    """Return why Triton kernels cannot run on `device`; None if they can."""
    if not is_installed("triton"):
        return "the package triton is not installed"
    interpreted = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")
    if device.type == "cpu" and not interpreted:
        return "a CPU runs Triton kernels in the interpreter only: set TRITON_INTERPRET=1"
    return None


def is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package is not installed
        return False


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
