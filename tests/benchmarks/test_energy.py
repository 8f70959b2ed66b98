"""Energy from counters of processors and GPUs, if they can be read."""

import asyncio
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from helios_serve.benchmarks.measure import energy
from helios_serve.benchmarks.measure.energy import EnergyMeter, RaplCounter, local_counters
from helios_serve.benchmarks.runner import is_local
from helios_serve.options.benchmarks import TargetOptions


def package(folder: Path, microjoules: int, largest: int = 1_000_000_000) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text(f"{largest}\n")
    return folder


def test_packages_are_added_and_their_parts_are_not(tmp_path: Path) -> None:
    """A sub-zone such as the memory of a package is part of its counter."""
    for name in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0", "other"):
        package(tmp_path / name, 5_000_000)
    meter = EnergyMeter(local_counters(tmp_path))
    package(tmp_path / "intel-rapl:0", 8_000_000)
    package(tmp_path / "intel-rapl:1", 6_000_000)
    meter.update()
    found = meter.energy(frames=8)
    assert found is not None
    assert (found.joules, found.joules_per_frame) == (4.0, 0.5)
    assert found.by_source == {"rapl": 4.0}


def test_a_counter_that_begins_again_is_not_taken_for_less(tmp_path: Path) -> None:
    counter = RaplCounter(package(tmp_path / "intel-rapl:0", 9_000_000, 10_000_000))
    package(tmp_path / "intel-rapl:0", 2_000_000, 10_000_000)
    assert counter.grown() == 3.0


def test_without_counters_there_is_no_energy(tmp_path: Path) -> None:
    """Also if they cannot be read (often only root may) or become unreadable."""
    assert EnergyMeter(local_counters(tmp_path)).energy(3) is None
    (tmp_path / "intel-rapl:0").mkdir()
    assert EnergyMeter(local_counters(tmp_path)).energy(3) is None
    folder = package(tmp_path / "intel-rapl:0", 1)
    package(tmp_path / "intel-rapl:1", 1)
    meter = EnergyMeter(local_counters(tmp_path))
    meter.update()
    (folder / "energy_uj").unlink()
    meter.update()
    meter.update()
    assert meter.energy(3) is None


def test_gpus_are_counted_by_nvml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In millijoules. A GPU without a counter, as before Volta, is left out."""
    counts = {0: 1000.0, 1: 500.0}
    nvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 3,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetTotalEnergyConsumption=counts.__getitem__,
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    meter = EnergyMeter(local_counters(tmp_path))
    counts |= {0: 4000.0, 1: 1500.0}
    meter.update()
    found = meter.energy(frames=0)
    assert found is not None
    assert (found.joules, found.joules_per_frame) == (4.0, None)


def test_counters_are_read_while_the_load_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(energy, "PERIOD", 0.01)
    folder = package(tmp_path / "intel-rapl:0", 0, 1_000_000)

    async def main() -> float:
        meter = EnergyMeter(local_counters(tmp_path))
        task = asyncio.create_task(meter.run())
        for _ in range(3):  # more than the counter's range in all
            package(folder, 900_000, 1_000_000)
            await asyncio.sleep(0.1)
            package(folder, 0, 1_000_000)
            await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.wait((task,))
        found = meter.energy(1)
        assert found is not None
        return found.joules

    assert asyncio.run(main()) == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (None, True),
        ("http://localhost:8000", True),
        ("http://127.0.0.2:8000/", True),
        ("http://[::1]:8000", True),
        ("http://10.0.0.1:8000", False),
        ("https://127.example.com", False),
    ],
)
def test_only_a_server_on_this_machine_takes_its_energy(url: str | None, expected: bool) -> None:
    assert is_local(TargetOptions(base_url=url)) == expected
