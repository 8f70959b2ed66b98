"""Session records with given times, and runs made of them."""

from typing import Any

from helios_serve.benchmarks.load.request import SessionRequest
from helios_serve.benchmarks.load.tenants import LoadTenants
from helios_serve.benchmarks.load.workload import Workload
from helios_serve.benchmarks.measure.load_run import ClientLoad, LoadRun
from helios_serve.benchmarks.measure.record import ChunkRecord, SessionRecord
from helios_serve.options.benchmarks import LoadOptions, ReportOptions, TargetOptions


def session(
    number: int = 0,
    *,
    intended: float = 0.0,
    arrivals: tuple[float, ...] = (),
    frames: int = 24,
    fps: int = 24,
    **fields: Any,
) -> SessionRecord:
    """Return a session whose chunks of `frames` frames arrived at the given times."""
    record = SessionRecord.of(
        SessionRequest(prompt="p", num_frames=frames * len(arrivals) or 1, fps=fps),
        number,
        intended,
    )
    record.chunks = [ChunkRecord(at, frames, 1000) for at in arrivals]
    record.sent = intended
    record.accepted = intended + 0.01
    record.ended = arrivals[-1] if arrivals else intended + 0.01
    record.outcome = "completed" if arrivals else "failed"
    for name, value in fields.items():
        setattr(record, name, value)
    return record


def run_of(
    records: list[SessionRecord],
    *,
    window: tuple[float, float] = (0.0, 10.0),
    report: ReportOptions | None = None,
    load: LoadOptions | None = None,
    tenants: LoadTenants | None = None,
    **fields: Any,
) -> LoadRun:
    """Return a run of the sessions by a client without delays."""
    requests = tuple(
        SessionRequest(prompt="p", num_frames=record.num_frames, timestamp=1000 * record.intended)
        for record in records
    )
    run = LoadRun(
        Workload(requests, tenants or LoadTenants(), load or LoadOptions()),
        TargetOptions(),
        report or ReportOptions(),
        "media",
        records,
        window,
        max(record.ended or 0.0 for record in records),
        ClientLoad([0.001], 0.1, 100.0, 0.002),
    )
    return run._replace(**fields)
