"""Devices and dtypes by the names that users give them."""

import os
from contextlib import AbstractContextManager, nullcontext

import torch

from helios_serve.errors import DeviceError
from helios_serve.kernels.backend import KernelChoice, choose_kernels

ACCELERATORS = ("cuda", "npu", "xpu")
"""Kinds of accelerator that "auto" takes; all have float64, which the DMD update needs."""

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def resolve_device(name: str) -> torch.device:
    """`auto` is the first accelerator, or the CPU; raises DeviceError for one not present.

    So it does where the device cannot run the kernels that the environment asks for.
    """
    device = find_device(name, find_accelerator())
    resolve_kernels(device)
    return device


def current(device: torch.device) -> AbstractContextManager[None]:
    """Makes `device` this thread's current one: there Triton runs its kernels, wherever their
    tensors are."""
    return nullcontext() if device.type == "cpu" else torch.accelerator.device_index(device.index)


def find_accelerator() -> torch.device | None:
    """The one that "auto" takes, if there is any."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator if accelerator is not None and accelerator.type in ACCELERATORS else None


def spread(name: str, places: range) -> str:
    """The first device of a worker with others beside it: a name without a number goes round all.

    `places`, one for each of its processes, count from 0; where there are more than devices, some
    share one. A worker whose processes would go beyond the last device begins at the first.
    """
    accelerator = find_accelerator()
    if accelerator is None or name not in ("auto", accelerator.type):
        return name
    count = torch.accelerator.device_count()
    first = places.start % count
    return f"{accelerator.type}:{first if first + len(places) <= count else 0}"


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


def resolve_kernels(device: torch.device) -> KernelChoice:
    """The kernels of `device`; raises DeviceError where the environment asks for others."""
    try:
        return choose_kernels(device)
    except ValueError as error:
        raise DeviceError(str(error)) from error


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on an accelerator and float32 on the CPU."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if name not in DTYPES:
        raise DeviceError(f"got dtype {name!r}, expected auto or one of {', '.join(DTYPES)}")
    return DTYPES[name]


def check_fp8(device: torch.device, dtype: torch.dtype) -> None:
    """Raise DeviceError where FP8 matmuls with a scale a row do not run, by running a small one."""
    eights = torch.ones(16, 16, device=device).to(torch.float8_e4m3fn)
    scale = torch.ones(16, 1, device=device)
    try:
        torch._scaled_mm(
            eights,
            eights.t(),
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


def free_memory(device: torch.device) -> int:
    """Bytes that are free on the device now."""
    if device.type == "cpu":
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    free, _ = torch.accelerator.get_memory_info(device)
    return int(free)
