"""Chooses the kernels and the attention of a device: by what it can run and by what was asked for.

This module and `attention` are the only ones of this package that name a kind of device. Choices
are cached per device.
"""

import os
from collections.abc import Iterator
from functools import lru_cache
from typing import Literal, NamedTuple, get_args

import torch

from helios_serve.kernels.attention import (
    GPU,
    SUPPORT,
    AttentionPath,
    cudnn_version,
    fastest_on_gpu,
    is_installed,
    lack_on_gpu,
    library_of,
)

Backend = Literal["reference", "triton"]
ATTENTION_PATHS: tuple[AttentionPath, ...] = get_args(AttentionPath)
AUTO = "auto"
"""The wish for the fastest attention that there is."""

KERNELS_VARIABLE, ATTENTION_VARIABLE = "HELIOS_KERNELS", "HELIOS_ATTENTION"
ATTENTION_OPTION = "attention_backend"
"""The worker option, which outranks the variable."""


class KernelChoice(NamedTuple):
    """The backend of a device, and its attention in half precision without a bias.

    `library` is the package of the attention and its version, where there is one.
    """

    backend: Backend
    attention: AttentionPath
    library: str = ""

    def __str__(self) -> str:
        library = f" ({self.library})" if self.library else ""
        return f"{self.backend} kernels, attention by {self.attention}{library}"


def choose_kernels(device: torch.device, attention: str = AUTO) -> KernelChoice:
    """Choose the kernels of `device`, and its attention, by name or "auto".

    Raises ValueError if the argument or an environment variable is unknown or requests what the
    device cannot run.
    """
    return _choose(
        device,
        os.environ.get(KERNELS_VARIABLE, ""),
        os.environ.get(ATTENTION_VARIABLE, ""),
        attention,
    )


@lru_cache(maxsize=16)
def _choose(device: torch.device, kernels: str, variable: str, option: str) -> KernelChoice:
    backend = choose_backend(device, kernels)
    if option != AUTO:
        path = choose_attention(device, option, backend, source=ATTENTION_OPTION)
    else:
        path = choose_attention(device, variable, backend, source=ATTENTION_VARIABLE)
    return KernelChoice(backend, path, library_name(path))


def choose_backend(device: torch.device, wish: str) -> Backend:
    """The backend that `wish` names; without one, Triton on GPUs where it is installed."""
    lack = triton_lack(device)
    match wish:
        case "":
            return "triton" if device.type == GPU and lack is None else "reference"
        case "reference":
            return "reference"
        case "triton":
            if lack is None:
                return "triton"
            raise ValueError(f"{KERNELS_VARIABLE}: got triton on {device}, but {lack}")
    raise ValueError(f"{KERNELS_VARIABLE}: got {wish!r}, expected reference or triton")


def choose_attention(
    device: torch.device, wish: str, backend: Backend, *, source: str
) -> AttentionPath:
    """The path that `wish` names, which `source` gave; without one, the fastest available.

    With the references that is torch's own: by name on a CPU, SDPA on other devices.
    """
    if not wish or wish == AUTO:
        if backend == "reference":
            return "cpu" if device.type == "cpu" else "sdpa"
        faster = fastest_on_gpu(device) if device.type == GPU else ()
        return next((path for path in faster if lack_of(path, device) is None), "triton")
    for path in ATTENTION_PATHS:
        if path == wish:
            if (lack := lack_of(path, device)) is not None:
                raise ValueError(
                    f"{source}: got {wish}, which {device} cannot run: {lack}. Available: "
                    f"{', '.join(available(device))}"
                )
            return path
    raise ValueError(f"{source}: got {wish!r}, expected one of {', '.join(ATTENTION_PATHS)}")


def available(device: torch.device) -> Iterator[AttentionPath]:
    """Yield the paths that `device` can run, the fastest first."""
    return (path for path in ATTENTION_PATHS if lack_of(path, device) is None)


def lack_of(path: AttentionPath, device: torch.device) -> str | None:
    """Why `device` cannot run `path`, or None if it can."""
    if path == "sdpa":
        return None
    if path == "cpu":
        return None if device.type == "cpu" else "it needs a CPU"
    if path == "triton":
        return triton_lack(device)
    return lack_on_gpu(path, device)


def library_name(path: AttentionPath) -> str:
    """The package behind `path` and its version; "" for torch's own functions and ours."""
    if path == "cudnn":
        return f"cuDNN {cudnn_version()}"
    if path not in SUPPORT:
        return ""
    found = library_of(path)
    return "" if isinstance(found, str) else found.library


def triton_lack(device: torch.device) -> str | None:
    """Return why Triton kernels cannot run on `device`; None if they can."""
    if not is_installed("triton"):
        return "the package triton is not installed"
    interpreted = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")
    if device.type == "cpu" and not interpreted:
        return "a CPU runs Triton kernels in the interpreter only: set TRITON_INTERPRET=1"
    return None
