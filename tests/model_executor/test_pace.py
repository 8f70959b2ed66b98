"""A worker that runs ahead of a simulated device."""

import torch

from helios_serve.model_executor.streams import DeviceStreams
from helios_serve.model_executor.worker.worker import Pace


class SlowDevice(DeviceStreams):
    """Records what was queued and what was awaited."""

    def __init__(self, name: str = "cuda:0") -> None:
        super().__init__(torch.device(name))
        self.told: list[str] = []

    def run(self, pace: Pace, plans: int) -> list[str]:
        for number in range(plans):
            with pace.plan():
                self.told.append(f"queue {number}")
        return self.told

    def record(self) -> "Done":
        return Done(self, self.told[-1].removeprefix("queue "))


class Done:
    """An event at the end of a plan on the device."""

    def __init__(self, device: SlowDevice, plan: str) -> None:
        self.device = device
        self.plan = plan

    def synchronize(self) -> None:
        self.device.told.append(f"wait for {self.plan}")


def test_a_plan_is_queued_while_the_device_is_at_the_one_before() -> None:
    device = SlowDevice()
    assert device.run(Pace(device), 4) == [
        *("queue 0", "queue 1"),
        *("wait for 0", "queue 2"),
        *("wait for 1", "queue 3"),
    ]


def test_a_cpu_is_never_waited_for() -> None:
    cpu = SlowDevice("cpu")
    assert cpu.run(Pace(cpu), 3) == ["queue 0", "queue 1", "queue 2"]
