"""Resolves device and dtype names, and checks what a device supports."""

import platform
from contextlib import AbstractContextManager, nullcontext

import torch

from helios_serve.errors import DeviceError
from helios_serve.kernels.attention import cudnn_version
from helios_serve.kernels.backend import (
    ATTENTION_PATHS,
    AUTO,
    KernelChoice,
    choose_kernels,
    lack_of,
)
from helios_serve.model_executor.host_memory import Memory, host_memory

ACCELERATORS = ("cuda", "npu", "xpu")
"""Accelerators that `auto` selects. All support float64, which the DMD update needs."""

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def resolve_device(name: str) -> torch.device:
    """Return the device called `name`. `auto` is the first accelerator, or the CPU if none exists.

    Raises DeviceError if the device does not exist, or cannot run the kernels that the environment
    selects.
    """
    device = find_device(name, find_accelerator())
    resolve_kernels(device)
    return device


def current_device(device: torch.device) -> AbstractContextManager[None]:
    """Return a context in which `device` is this thread's current device.

    Triton launches kernels on the current device, whatever device their tensors are on.
    """
    return nullcontext() if device.type == "cpu" else torch.accelerator.device_index(device.index)


def find_accelerator() -> torch.device | None:
    """Return the accelerator that `auto` selects, or None."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator if accelerator is not None and accelerator.type in ACCELERATORS else None


def assign_device(name: str, slots: range) -> str:
    """Return the first device of a worker, given its slots on this machine.

    `slots` holds one consecutive number, from 0, for each process of the worker. A name without an
    index (`auto`, `cuda`) is mapped to the device at the first slot, modulo the number of devices:
    with more slots than devices, workers share devices. A worker whose processes would exceed the
    last device starts at device 0. Other names are returned unchanged.
    """
    accelerator = find_accelerator()
    if accelerator is None or name not in ("auto", accelerator.type):
        return name
    count = torch.accelerator.device_count()
    first = slots.start % count
    return f"{accelerator.type}:{first if first + len(slots) <= count else 0}"


def find_device(name: str, accelerator: torch.device | None) -> torch.device:
    if name == "auto":
        return accelerator or torch.device("cpu")
    present = {"cpu": 1}
    if accelerator is not None:
        present[accelerator.type] = torch.accelerator.device_count()
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or (device.index or 0) >= present.get(device.type, 0):
        raise DeviceError(f"got device {name!r}, expected auto or one of {', '.join(present)}")
    return device


def resolve_kernels(device: torch.device, attention: str = AUTO) -> KernelChoice:
    """Return the kernels for `device`. Raises DeviceError if it cannot run those selected."""
    try:
        return choose_kernels(device, attention)
    except ValueError as error:
        raise DeviceError(str(error)) from error


def attention_lacks(device: torch.device) -> dict[str, str | None]:
    """Return, for each path of attention, why `device` cannot run it, or None if it can."""
    return {path: lack_of(path, device) for path in ATTENTION_PATHS}


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return a dtype by name. `auto` is bfloat16 on an accelerator and float32 on the CPU."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if name not in DTYPES:
        raise DeviceError(f"got dtype {name!r}, expected auto or one of {', '.join(DTYPES)}")
    return DTYPES[name]


def check_fp8(device: torch.device, dtype: torch.dtype) -> None:
    """Raise DeviceError unless a small FP8 matmul with one scale per row runs on `device`."""
    values = torch.ones(16, 16, device=device).to(torch.float8_e4m3fn)
    scale = torch.ones(16, 1, device=device)
    try:
        torch._scaled_mm(
            values,
            values.t(),
            scale_a=scale,
            scale_b=scale.t(),
            bias=torch.zeros(16, dtype=dtype, device=device),
            out_dtype=dtype,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DeviceError(
            f"got quantization fp8, which {device.type} with {str(dtype).removeprefix('torch.')} "
            f"cannot do: {reason}"
        ) from error


def device_name(device: torch.device) -> str:
    """Return the name of a device for people, such as NVIDIA H100 80GB HBM3."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU" if device.type == "cpu" else str(device)


def toolkit_versions() -> dict[str, str]:
    """Return the versions of what torch was built for; "none" for what it lacks."""
    versions = {
        "CUDA": torch.version.cuda,
        "ROCm": torch.version.hip,
        "cuDNN": cudnn_version(),
    }
    return {name: str(found or "none") for name, found in versions.items()}


def release_cached(device: torch.device) -> None:
    """Return memory that torch keeps after tensors were freed to the device."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
        torch.accelerator.empty_cache()


def device_memory(device: torch.device) -> Memory:
    """Return the memory of the device. A CPU's is that of the host, within its cgroup's limits."""
    if device.type == "cpu":
        return host_memory()
    free, total = torch.accelerator.get_memory_info(device)
    return Memory(int(free), int(total))
