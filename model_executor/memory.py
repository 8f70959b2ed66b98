"""Compares what a model needs with the memory that is free, before anything is allocated."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import torch

from helios_serve.errors import DeviceError
from helios_serve.model_config import BLOCK_ROWS, PATCH_DIM, HeliosConfig
from helios_serve.model_executor.components import build_parts, parts_of
from helios_serve.model_executor.device import (
    ACCELERATORS,
    check_fp8,
    device_memory,
    find_accelerator,
    find_device,
    resolve_dtype,
)
from helios_serve.model_executor.host_memory import Memory, host_memory
from helios_serve.model_executor.offload import WeightPlacement
from helios_serve.model_executor.weights import weight_bytes
from helios_serve.options.workers import WorkerConfig, WorkerGroup

PATIENCE_SECONDS = 10.0
"""Time for which a worker waits until the system has freed the memory of an ended process."""
POLL_SECONDS = 0.25
MEGABYTES_BELOW = 100_000_000
"""Sizes below this many bytes are shown in megabytes."""
HISTORY, LOADING = "history", "loading"
"""Names of what takes memory besides the parts of a checkpoint."""
SAVINGS: tuple[dict[str, object], ...] = (
    {"dtype": "bfloat16"},
    {"quantization": "fp8"},
    {"dtype": "bfloat16", "quantization": "fp8"},
    {"offload": True},
    {"offload": True, "quantization": "fp8"},
)
"""Options that save memory, the cheapest ones first. docs/memory.md describes their costs."""

Amounts = Counter[str]
"""Bytes by the name of what takes them."""


class MemoryCheck:
    """What workers of a model need: their weights, and their history pool if its size is set.

    Activations and the keys and values of prompts come on top: they depend on the requests.
    """

    def __init__(self, model: str, folder: Path, config: HeliosConfig) -> None:
        self.model = model
        self.folder = folder
        self.config = config
        self._known: dict[object, dict[str, dict[str, int]]] = {}
        """Sizes by precision: building a large model takes a while, even on the meta device."""

    def check_host(self, groups: Sequence[WorkerGroup], *, patience: float = 0.0) -> None:
        """Raise DeviceError unless this host has memory for all workers of `groups` together."""
        self._check("the host", groups, self.on_host, host_memory, patience)

    def check_worker(self, worker: WorkerConfig, *, patience: float = PATIENCE_SECONDS) -> None:
        """Raise DeviceError unless a worker's device, and its host, have the memory it needs.

        Waits up to `patience` seconds for memory that would be enough if it were free.
        """
        groups, device = [WorkerGroup(worker)], device_of(worker)
        if device.type != "cpu":
            measure = lambda: device_memory(device)  # noqa: E731
            self._check(str(device), groups, self.on_device, measure, patience)
        self.check_host(groups, patience=patience)

    def on_host(self, worker: WorkerConfig) -> Amounts:
        """Return what a worker takes of the host's memory: everything if its device is the CPU."""
        if device_of(worker).type == "cpu":
            return self.on_device(worker) + self._kept_on_host(worker)
        return self._kept_on_host(worker)

    def on_device(self, worker: WorkerConfig) -> Amounts:
        """Return the most that a worker takes of its device's memory, by part."""
        amounts, largest = Amounts(), 0
        for name, placement in self._placements(worker):
            amounts[name] = placement.device_bytes
            largest = max(largest, *placement.sizes.values())
        if worker.offload:
            amounts[LOADING] = largest  # each tensor passes through the device
        if worker.history_blocks is not None and "denoise" in worker.roles:
            amounts[HISTORY] = worker.history_blocks * block_bytes(worker)
        return amounts

    def _kept_on_host(self, worker: WorkerConfig) -> Amounts:
        return Amounts({name: item.host_bytes for name, item in self._placements(worker)})

    def _placements(self, worker: WorkerConfig) -> Iterator[tuple[str, WeightPlacement]]:
        """Yield the placement of each part that a worker loads. Allocates nothing."""
        device = device_of(worker)
        for name, sizes in self._sizes(worker, device).items():
            yield name, WeightPlacement(name, sizes, device, worker.offload)

    def _sizes(self, worker: WorkerConfig, device: torch.device) -> dict[str, dict[str, int]]:
        """Return the bytes of each tensor of a worker's parts, in the precision that it has."""
        dtype = resolve_dtype(worker.dtype, device)
        decode_dtype = resolve_dtype(worker.decode_dtype, device)
        needed = parts_of(worker.roles)
        key = (dtype, worker.quantization, decode_dtype, needed)
        if key not in self._known:
            parts = build_parts(
                self.folder,
                self.config,
                dtype,
                worker.quantization,
                decode_dtype=decode_dtype,
                needed=needed,
            )
            self._known[key] = {name: weight_bytes(*part) for name, part in parts.items()}
        return self._known[key]

    def _check(
        self,
        where: str,
        groups: Sequence[WorkerGroup],
        amounts_of: Callable[[WorkerConfig], Amounts],
        measure: Callable[[], Memory],
        patience: float,
    ) -> None:
        amounts = total_of(groups, amounts_of)
        free = wait_for(amounts.total(), measure, patience)
        if amounts.total() <= free:
            return
        parts = ", ".join(f"{name} {size_text(size)}" for name, size in amounts.items() if size)
        count = sum(group.count for group in groups)
        workers = f"{count} workers with " if count > 1 else ""
        hints = [*fewer(amounts, count, free), *savings(groups, amounts_of, free)]
        advice = "no option makes it fit: "
        if hints:
            advice = f"{', or '.join(hints)}; or "
        raise DeviceError(
            f"got {size_text(free)} of free memory on {where}, expected "
            f"{size_text(amounts.total())} for {workers}{self.model} ({parts}): {advice}use a "
            "machine with more memory, or a smaller model such as nano"
        )


def total_of(
    groups: Sequence[WorkerGroup], amounts_of: Callable[[WorkerConfig], Amounts]
) -> Amounts:
    """Return what all workers of `groups` take together."""
    total = Amounts()
    for group in groups:
        for name, size in amounts_of(group.config).items():
            total[name] += size * group.count
    return total


def wait_for(needed: int, measure: Callable[[], Memory], patience: float) -> int:
    """Return the free memory, once it is enough or `patience` seconds have passed.

    It does not wait for more memory than there is.
    """
    deadline = time.monotonic() + patience
    memory = measure()
    while memory.free < needed <= memory.total and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        memory = measure()
    return memory.free


def fewer(amounts: Amounts, count: int, free: int) -> Iterator[str]:
    """Yield advice: how many of `count` equal workers fit, and how large a history pool fits."""
    if count > 1 and (fitting := count * free // amounts.total()) > 0:
        yield f"use {fitting} of the {count} workers"
    if (left := free - (amounts.total() - amounts[HISTORY])) > 0 < amounts[HISTORY]:
        yield f"use {100 * left // amounts[HISTORY]}% of the history blocks"


def savings(
    groups: Sequence[WorkerGroup], amounts_of: Callable[[WorkerConfig], Amounts], free: int
) -> Iterator[str]:
    """Yield the smallest sets of options with which all workers fit."""
    found: list[dict[str, object]] = []
    for options in SAVINGS:
        if any(fitting.items() <= options.items() for fitting in found):
            continue
        changed = [
            WorkerGroup(msgspec.structs.replace(group.config, **options), group.count)
            for group in groups
        ]
        if not all(is_possible(group.config) for group in changed):
            continue
        needed = total_of(changed, amounts_of).total()
        if needed <= free:
            found.append(options)
            names = " and ".join(
                name if value is True else f"{name} {value}" for name, value in options.items()
            )
            yield f"use {names}, which takes {size_text(needed)}"


def is_possible(worker: WorkerConfig) -> bool:
    """Return whether a worker can have its options on its device."""
    if worker.offload and worker.ranks > 1:
        return False
    if worker.quantization is not None:
        device = device_of(worker)
        try:
            check_fp8(device, resolve_dtype(worker.dtype, device))
        except DeviceError:
            return False
    return True


def device_of(worker: WorkerConfig) -> torch.device:
    """Return the device of a worker, which checks itself whether it exists.

    Raises DeviceError for a name that torch does not know.
    """
    accelerator = find_accelerator()
    try:
        return find_device(worker.device, accelerator)
    except DeviceError:
        if worker.device.partition(":")[0] not in ACCELERATORS:
            raise
        return torch.device(worker.device)


def block_bytes(worker: WorkerConfig) -> int:
    """Return the bytes of a history block."""
    dtype = resolve_dtype(worker.dtype, device_of(worker))
    return BLOCK_ROWS * PATCH_DIM * dtype.itemsize


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an allocation failed. On a CPU torch raises a RuntimeError for it."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def size_text(size: int) -> str:
    """Return a number of bytes for people, such as 57.2 GB or 3.9 MB."""
    return f"{size / 1e9:.1f} GB" if size >= MEGABYTES_BELOW else f"{size / 1e6:.1f} MB"
