"""Energy that this machine's GPUs and processors used during a run, if counters can be read.

GPUs: NVML's counter (package nvidia-ml-py), from Volta on. Processors: RAPL's counters of packages
in /sys/class/powercap, which often only root may read. Both count the whole machine.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import msgspec

POWERCAP = Path("/sys/class/powercap")
PERIOD = 10.0


class Energy(msgspec.Struct, frozen=True):
    """Joules of the whole load, by source ("nvml", "rapl"), and per delivered frame.

    Sources that could not be read are left out.
    """

    joules: float
    joules_per_frame: float | None
    by_source: dict[str, float]


class Counter(Protocol):
    """A counter of energy."""

    source: str

    def grown(self) -> float:
        """Return the joules since the last call, or since the counter was created."""


class RaplCounter:
    """The counter of one processor package, which wraps around to 0."""

    source = "rapl"

    def __init__(self, folder: Path) -> None:
        self.path = folder / "energy_uj"
        self.range = int((folder / "max_energy_range_uj").read_text())
        self._last = self._read()

    def grown(self) -> float:
        now, last = self._read(), self._last
        self._last = now
        return ((now - last) % self.range) / 1e6

    def _read(self) -> int:
        return int(self.path.read_text())


class NvmlCounter:
    """One GPU."""

    source = "nvml"

    def __init__(self, index: int) -> None:
        import pynvml

        pynvml.nvmlInit()
        self._read = pynvml.nvmlDeviceGetTotalEnergyConsumption
        self._device = pynvml.nvmlDeviceGetHandleByIndex(index)
        self._last = float(self._read(self._device))

    def grown(self) -> float:
        now, last = float(self._read(self._device)), self._last
        self._last = now
        return (now - last) / 1000


class EnergyMeter:
    """Adds up the energy of counters while it runs."""

    def __init__(self, counters: Sequence[Counter]) -> None:
        self._counters = list(counters)
        self._joules: dict[str, float] = {}

    async def run(self) -> None:
        """Measure until cancelled. Counters wrap around, so they are read often."""
        try:
            while True:
                await asyncio.sleep(PERIOD)
                self.update()
        finally:
            self.update()

    def update(self) -> None:
        """Add the energy since the last call. A source that fails is left out from then on."""
        for counter in list(self._counters):
            if counter not in self._counters:
                continue
            try:
                grown = counter.grown()
            except Exception:  # of a driver, of any kind
                self._counters = [each for each in self._counters if each.source != counter.source]
                self._joules.pop(counter.source, None)
            else:
                self._joules[counter.source] = self._joules.get(counter.source, 0.0) + grown

    def energy(self, frames: int) -> Energy | None:
        """Return what was measured; None without a counter."""
        if not self._joules:
            return None
        joules = sum(self._joules.values())
        return Energy(joules, joules / frames if frames else None, dict(self._joules))


def local_counters(powercap: Path = POWERCAP) -> list[Counter]:
    """Return the counters of this machine that can be read."""
    found: list[Counter] = []
    for folder in sorted(powercap.glob("intel-rapl:*")):
        if folder.name.count(":") == 1:  # others belong to parts of a package
            with suppress(OSError, ValueError):
                found.append(RaplCounter(folder))
    for index in range(num_gpus()):
        with suppress(Exception):  # of a driver, of any kind
            found.append(NvmlCounter(index))
    return found


def num_gpus() -> int:
    """Return the number of GPUs that NVML sees."""
    try:
        import pynvml

        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetCount())
    except Exception:  # without the package, a driver or a GPU
        return 0
