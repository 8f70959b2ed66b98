"""The choice of a worker's device."""

import pytest
import torch

from helios_serve.model_executor.device import assign_device, current_device
from helios_serve.model_executor.executor.local import DeviceSlots


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: gpu)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 4)


@pytest.mark.usefixtures("four_gpus")
@pytest.mark.parametrize(
    ("name", "slots", "device"),
    [
        ("auto", range(1), "cuda:0"),
        ("auto", range(5, 6), "cuda:1"),
        ("cuda", range(2, 3), "cuda:2"),
        ("cuda", range(2, 4), "cuda:2"),
        ("cuda", range(3, 5), "cuda:0"),
        ("cuda", range(1, 5), "cuda:0"),
        ("cuda:3", range(1), "cuda:3"),
        ("cpu", range(2, 3), "cpu"),
    ],
)
def test_workers_go_round_the_devices(name: str, slots: range, device: str) -> None:
    assert assign_device(name, slots) == device


@pytest.mark.parametrize("name", ["auto", "cpu", "cuda"])
def test_names_stay_where_there_is_no_accelerator(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: None)
    assert assign_device(name, range(1, 2)) == name


def test_workers_take_the_lowest_slots_that_are_free() -> None:
    slots = DeviceSlots()
    first, second, third = (slots.take(1) for _ in range(3))
    assert (first, second, third) == (range(1), range(1, 2), range(2, 3))
    slots.release(second)
    assert slots.take(2) == range(3, 5)
    assert slots.take(1) == second
    slots.release(first)
    slots.release(second)
    assert slots.take(2) == range(2)


def test_the_device_of_a_worker_becomes_the_current_one() -> None:
    """Triton launches its kernels there, not where their tensors are."""
    there = current_device(torch.device("cuda", 1))
    assert isinstance(there, torch.accelerator.device_index)
    assert there.idx == 1
    with current_device(torch.device("cpu")):
        pass
