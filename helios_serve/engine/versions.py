"""What this installation consists of, for bug reports: versions, devices, kernels, attention."""

import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import torch

from helios_serve.model_executor.device import (
    attention_lacks,
    device_memory,
    device_name,
    find_accelerator,
    resolve_kernels,
    toolkit_versions,
)

PACKAGES = ("torch", "triton", "numpy", "diffusers", "transformers", "av", "msgspec")


def describe_installation() -> Iterator[str]:
    """Yield lines about Python, packages, and each device with what it would run.

    Raises DeviceError if an environment variable requests what a device cannot run.
    """
    yield f"Python {sys.version.split()[0]} on {platform.platform()}"
    for name in PACKAGES:
        yield f"{name} {installed_version(name)}"
    yield ", ".join(f"{name} {value}" for name, value in toolkit_versions().items())
    for device in devices():
        yield from describe_device(device)


def describe_device(device: torch.device) -> Iterator[str]:
    """Yield a line about `device`, one about its kernels, and one for each path of attention."""
    gigabytes = device_memory(device).total / 1e9
    yield f"{device}: {device_name(device)}, {gigabytes:.1f} GB"
    yield f"{device}: {resolve_kernels(device)}"
    for path, lack in attention_lacks(device).items():
        yield f"{device}: attention by {path}: {lack or 'available'}"


def devices() -> list[torch.device]:
    """Return the accelerators of this machine, or its CPU if it has none."""
    accelerator = find_accelerator()
    if accelerator is None:
        return [torch.device("cpu")]
    count = torch.accelerator.device_count()
    return [torch.device(accelerator.type, index) for index in range(count)]


def installed_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
