"""Summaries of metrics over sessions and chunks, with intervals."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import msgspec
import numpy as np

from helios_serve.benchmarks.measure.metrics import SessionMetrics, session_metrics
from helios_serve.benchmarks.measure.record import SessionRecord
from helios_serve.benchmarks.measure.statistics import (
    Estimate,
    clustered_quantiles,
    quantile_interval,
    ratio_interval,
)

Unit = Literal["ms", "ratio"]


class Metric(NamedTuple):
    """A metric: its unit, the values of a session, and its title in reports.

    `per_chunk`: a session has a value for each chunk, and these are correlated.
    """

    unit: Unit
    title: str
    values: Callable[[SessionMetrics], Sequence[float | None]]
    per_chunk: bool = False


METRICS: Mapping[str, Metric] = {
    "ttfc": Metric("ms", "Time to first chunk", lambda own: [own.ttfc]),
    "icl": Metric("ms", "Inter-chunk latency", lambda own: own.icls, per_chunk=True),
    "e2el": Metric("ms", "End-to-end latency", lambda own: [own.e2el]),
    "service_ttfc": Metric("ms", "First chunk after sending", lambda own: [own.service_ttfc]),
    "service_e2el": Metric("ms", "Last chunk after sending", lambda own: [own.service_e2el]),
    "accept_latency": Metric("ms", "Time to acceptance", lambda own: [own.accept_latency]),
    "send_lag": Metric("ms", "Send lag", lambda own: [own.send_lag]),
    "needed_buffer": Metric("ms", "Needed start-up buffer", lambda own: [own.needed_buffer]),
    "stall": Metric("ms", "Stalled time of a session", lambda own: [own.stall_seconds]),
    "switch_latency": Metric(
        "ms", "Prompt switch to its first chunk", lambda own: own.switch_latencies, per_chunk=True
    ),
    "switch_playback": Metric(
        "ms", "Prompt switch to its display", lambda own: own.switch_playbacks, per_chunk=True
    ),
    "chunk_rtf": Metric(
        "ratio", "Real-time factor of chunks", lambda own: own.chunk_rtfs, per_chunk=True
    ),
    "session_rtf": Metric("ratio", "Real-time factor of sessions", lambda own: [own.session_rtf]),
    "e2e_rtf": Metric("ratio", "Real-time factor with waiting", lambda own: [own.e2e_rtf]),
}


class MetricSummary(msgspec.Struct, frozen=True):
    """A metric over `n` values: sessions, or chunks of sessions. Milliseconds, or a ratio."""

    unit: Unit
    n: int
    mean: float
    mean_low: float | None
    mean_high: float | None
    std: float
    percentiles: dict[str, Estimate]


def summarize_all(
    records: Sequence[SessionRecord], buffer: float, percentiles: Sequence[float], seed: int
) -> dict[str, MetricSummary]:
    """Summarize every metric that has a value. Sessions that the server cut short are left out."""
    sessions = [session_metrics(record, buffer) for record in records if record.is_served]
    found = {}
    for name, metric in METRICS.items():
        values = [
            [value for value in metric.values(session) if value is not None] for session in sessions
        ]
        if any(values):
            found[name] = summarize(
                values, metric.unit, percentiles, seed, per_chunk=metric.per_chunk
            )
    return found


def summarize(
    values: Sequence[Sequence[float]],
    unit: Unit,
    percentiles: Sequence[float],
    seed: int,
    *,
    per_chunk: bool,
) -> MetricSummary:
    """Summarize the values of each session. At least one session has values."""
    factor = 1000 if unit == "ms" else 1
    own = [[factor * value for value in session] for session in values if session]
    flat = np.array([value for session in own for value in session])
    mean = ratio_interval(
        [sum(session) for session in own], [len(session) for session in own], seed
    )
    shares = [percent / 100 for percent in percentiles]
    if per_chunk:
        owners = [index for index, session in enumerate(own) for _ in session]
        intervals = clustered_quantiles(flat, owners, shares, seed)
    else:
        intervals = [quantile_interval(flat, share) for share in shares]
    return MetricSummary(
        unit,
        len(flat),
        mean.value,
        mean.low,
        mean.high,
        float(flat.std()),
        {f"{percent:g}": found for percent, found in zip(percentiles, intervals, strict=True)},
    )
