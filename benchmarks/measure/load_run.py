"""The raw measurements of one run of a load."""

from typing import NamedTuple

from helios_serve.benchmarks.load.workload import Workload
from helios_serve.benchmarks.measure.energy import Energy
from helios_serve.benchmarks.measure.record import SessionRecord
from helios_serve.benchmarks.measure.server_metrics import GaugeSample
from helios_serve.options.benchmarks import ReportOptions, TargetOptions


class ClientLoad(NamedTuple):
    """How busy this client was.

    - `lags`: delays of its event loop, in seconds.
    - `cpu`: its CPU time per second; `memory_mib`: the most memory that it used.
    - `null_ttfc`: p99 of the time to the first chunk against a null server, in seconds.
    """

    lags: list[float]
    cpu: float
    memory_mib: float
    null_ttfc: float | None


class LoadRun(NamedTuple):
    """One run. `window` and `seconds` are in seconds since the start of the load.

    `timing` is a `Timing`, or "engine" without a server. `counts` are the growth of the server's
    counters, `samples` its gauges over time. `alone` are the seconds that a session of each shape
    takes alone, with --slo-scale.
    """

    workload: Workload
    target: TargetOptions
    report: ReportOptions
    timing: str
    records: list[SessionRecord]
    window: tuple[float, float]
    seconds: float
    client: ClientLoad
    server_version: str | None = None
    counts: dict[str, float] | None = None
    samples: list[GaugeSample] = []
    stopped_because: str | None = None
    energy: Energy | None = None
    alone: dict[str, float] | None = None

    @property
    def counted(self) -> list[SessionRecord]:
        """The sessions that are measured, without those of the warm-up."""
        return [record for record in self.records if record.is_counted]


def window_of(
    workload: Workload, records: list[SessionRecord], warm_up: float, stopped: float | None
) -> tuple[float, float]:
    """Return the window in which the load was steady.

    It ends with the duration, or when the last session started: after that the server empties. A
    load that starts at once has no such window; then it is the whole run.
    """
    starts = [record.intended for record in records]
    duration = workload.options.duration
    is_used_up = workload.is_closed and len(records) == len(workload.requests)
    end = max(starts, default=0.0) if duration is None or is_used_up else duration
    if stopped is not None:
        end = min(end, stopped)
    arrivals = [chunk.at for record in records for chunk in record.deliveries]
    if not any(warm_up < at <= end for at in arrivals):
        end = max(arrivals, default=0.0)
    return (min(warm_up, end), end)
