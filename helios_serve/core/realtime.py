"""Whether workers and decoders keep up with sessions that play in real time."""

from collections.abc import Iterable, Mapping

from helios_serve.core.cost import StepLoad
from helios_serve.core.device import Device
from helios_serve.core.rate import Rate
from helios_serve.core.session import Session
from helios_serve.core.worker_state import WorkerState


class RealTime:
    """Sums up what priority sessions take of every stage that makes chunks.

    Steps stay on their worker, and any decoder can take any chunk. On a device that does both, the
    steps go first, and decoders have what is left. Encoding is done once for a session, so it is
    part of no sum. `decode_load` is the pixels a second of all priority sessions, `decode_rate` the
    speed of a decoder with a device for itself.
    """

    def __init__(self, devices: Mapping[str, Device], decode_rate: Rate) -> None:
        self.devices = devices
        self.decode_rate = decode_rate
        self.decode_load = 0.0

    def add(self, session: Session) -> None:
        if session.is_priority:
            self.decode_load += session.cost.decode_rate

    def remove(self, session: Session) -> None:
        if session.is_priority:
            self.decode_load -= session.cost.decode_rate

    def keeping_up(
        self, more: StepLoad, workers: Iterable[WorkerState], share: float
    ) -> list[WorkerState]:
        """The workers that can take `more` steps in real time, within `share` of each device, if
        the decoders can then decode what all accepted sessions make.

        `more` are the steps of one session, and of others that are still to be placed. What was not
        measured yet is taken to be fast enough.
        """
        fast = [
            worker
            for worker in workers
            if not worker.device.is_draining and worker.device.realtime_share(more) <= share
        ]
        if not self.decode_rate.value:
            return fast
        free = {
            device.worker_id: max(0.0, share - device.realtime_share())
            for device in self.devices.values()
            if "decode" in device.roles and not device.is_draining
        }
        spare = sum(free.values()) - self.decode_rate.seconds(self.decode_load)

        def lost(worker: WorkerState) -> float:
            """What the decoders lose to the steps."""
            before = free.get(worker.worker_id, 0.0)
            return min(before, before - share + worker.device.realtime_share(more))

        return [
            worker
            for worker in fast
            if spare >= (lost(worker) if worker.worker_id in free else 0.0)
        ]

    def check_integrity(self, load: float) -> None:
        """Raise AssertionError unless `load` is what the sessions take of the decoders."""
        assert abs(self.decode_load - load) <= 1e-6 * max(1.0, load)
