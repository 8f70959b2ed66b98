"""Devices and dtypes by the names that users give them."""

import os

import torch

from helios_serve.errors import DeviceError

ACCELERATORS = ("cuda", "npu", "xpu")
"""Kinds of accelerator that "auto" takes; all have float64, which the DMD update needs."""

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def resolve_device(name: str) -> torch.device:
    """`auto` is the first accelerator, or the CPU; raises DeviceError for one not present."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is not None and accelerator.type not in ACCELERATORS:
        accelerator = None
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


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on an accelerator and float32 on the CPU."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if name not in DTYPES:
        raise DeviceError(f"got dtype {name!r}, expected auto or one of {', '.join(DTYPES)}")
    return DTYPES[name]


def free_memory(device: torch.device) -> int:
    """Bytes that are free on the device now."""
    if device.type == "cpu":
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    free, _ = torch.accelerator.get_memory_info(device)
    return int(free)
