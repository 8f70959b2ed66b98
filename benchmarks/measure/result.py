"""The result of a run, as JSON: vLLM's keys at the top, and everything else in `helios`.

`helios.schema` is the version of that block.
"""

import math
import platform
import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from helios_serve import __version__
from helios_serve.benchmarks.measure.cost import Cost, cost_of
from helios_serve.benchmarks.measure.energy import Energy
from helios_serve.benchmarks.measure.fairness import Fairness, fairness
from helios_serve.benchmarks.measure.goodput import Slo
from helios_serve.benchmarks.measure.load_run import LoadRun
from helios_serve.benchmarks.measure.machine import Machine, this_machine
from helios_serve.benchmarks.measure.metrics import session_metrics
from helios_serve.benchmarks.measure.outcomes import Outcomes, max_concurrency
from helios_serve.benchmarks.measure.record import SessionRecord
from helios_serve.benchmarks.measure.statistics import Estimate, quantile, wilson
from helios_serve.benchmarks.measure.summary import MetricSummary, summarize, summarize_all
from helios_serve.errors import InvalidRequestError
from helios_serve.options.benchmarks import LoadOptions

SCHEMA = 1
MAX_LAG = 0.020
LAG_SHARE = 0.02
"""A run is invalid if the client's p99 lag exceeds the larger of MAX_LAG seconds and this share of
the median time to the first chunk.
"""
STALL_FREE_BUFFERS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)


class PlayerSummary(msgspec.Struct, frozen=True):
    """Playback with a start-up buffer of `buffer` seconds.

    `stall_free_by_buffer` is the share of served sessions without a stall, by seconds of start-up
    buffer: the distribution of needed_buffer.
    """

    buffer: float
    stall_free: Estimate
    stall_free_by_buffer: dict[str, float]
    stalls: int
    stall_seconds: float
    rebuffer_ratio: float | None


class ClientSummary(msgspec.Struct, frozen=True):
    """The client's own delay, its CPU time per second and per session, and its memory."""

    lag_p99_ms: float
    send_lag_p99_ms: float
    cpu: float
    cpu_ms_per_session: float
    memory_mib: float
    null_ttfc_p99_ms: float | None
    version: str
    python: str


class ServerSummary(msgspec.Struct, frozen=True):
    """What the server reports: its version, and the increase of its counters."""

    version: str | None
    metrics_delta: dict[str, float] | None


class GroupSummary(msgspec.Struct, frozen=True):
    """A tenant's or a shape's part of the run."""

    offered: int
    completed: int
    frames: int
    metrics: dict[str, MetricSummary]


class WorkloadSummary(msgspec.Struct, frozen=True):
    """The source of the load, which suffices to repeat it."""

    seed: int
    sha256: str
    file: str | None


class HeliosBlock(msgspec.Struct, frozen=True, kw_only=True):
    """Results without a key in vLLM's format. Times are seconds unless a name ends with _ms."""

    schema: int = SCHEMA
    valid: bool
    invalid_because: list[str]
    loop: str
    timing: str
    poll_interval: float | None
    window: tuple[float, float]
    offered: int
    refused: dict[str, int]
    timed_out: int
    cancelled: int
    failures: dict[str, int]
    frames: int
    frames_per_second: float | None
    frames_per_second_per_gpu: float | None
    metrics: dict[str, MetricSummary]
    by_tenant: dict[str, GroupSummary]
    by_shape: dict[str, GroupSummary]
    by_chunk: dict[str, MetricSummary]
    polled_e2el_low: MetricSummary | None
    slo_attainment: Estimate
    good: int
    frame_goodput: float
    fairness: Fairness
    player: PlayerSummary | None
    client: ClientSummary
    server: ServerSummary
    energy: Energy | None
    cost: Cost | None
    alone_e2el_ms: dict[str, float] | None
    workload: WorkloadSummary
    machine: Machine
    command: str
    runs: list[dict[str, Any]] = []


def result_of(run: LoadRun, *, command: str, date: str | None = None) -> dict[str, Any]:
    """Return the result of a run, ready to be written as JSON."""
    block = block_of(run, command)
    report, target, load = run.report, run.target, run.workload.options
    outcomes = Outcomes.of(run.counted)
    failed = outcomes.offered - outcomes.completed - outcomes.cancelled
    seconds = max(run.seconds, 1e-9)
    top: dict[str, Any] = {
        "date": date or time.strftime("%Y%m%d-%H%M%S"),
        "endpoint_type": target.endpoint,
        "backend": target.backend,
        "label": report.label,
        "model_id": target.model,
        "tokenizer_id": None,
        "num_prompts": len(run.records),
        "request_rate": rate_of(load),
        "burstiness": load.burstiness,
        "ramp_up_strategy": load.ramp_up_strategy,
        "ramp_up_start_rps": load.ramp_up_start_rps,
        "ramp_up_end_rps": load.ramp_up_end_rps,
        "max_concurrency": load.users or load.max_concurrency,
        "duration": run.seconds,
        "completed": outcomes.completed,
        "failed": failed,
        "request_throughput": outcomes.completed / seconds,
        "request_goodput": block.good / seconds,
        "total_input_tokens": 0,
        "total_output_tokens": 0,
        "output_throughput": 0.0,
        "total_token_throughput": 0.0,
        "max_concurrent_requests": max_concurrency(run.records),
    }
    top |= metadata_of(report.metadata) | flat_metrics(block.metrics)
    e2el = block.metrics.get("e2el")
    top |= {
        "completed_requests": outcomes.completed,
        "failed_requests": failed,
        "throughput_qps": outcomes.completed / seconds,
        "slo_attainment_rate": block.slo_attainment.value,
        "slo_met_success": block.good,
    } | ({} if e2el is None else sglang_latencies(e2el))
    if report.save_detailed:
        top |= detailed(run.counted)
    return top | {"helios": msgspec.to_builtins(block)}


def block_of(run: LoadRun, command: str) -> HeliosBlock:
    records, report, seed = run.counted, run.report, run.workload.options.seed
    buffer, percentiles = report.start_buffer, percentiles_of(report.metric_percentiles)
    outcomes = Outcomes.of(records)
    slo = Slo.parse(report.goodput)
    good = [record for record in records if slo.is_met(record, buffer)]
    metrics = summarize_all(records, buffer, percentiles, seed)
    client = client_of(run)
    reasons = invalid_because(run, outcomes, client, metrics)
    start, end = run.window
    frames = frames_in(run.records, run.window)
    rate = frames / (end - start) if end > start else None
    return HeliosBlock(
        valid=not reasons,
        invalid_because=reasons,
        loop="closed" if run.workload.is_closed else "open",
        timing=run.timing,
        poll_interval=run.target.poll_interval if run.timing == "poll" else None,
        window=run.window,
        offered=outcomes.offered,
        refused=outcomes.refused,
        timed_out=outcomes.timed_out,
        cancelled=outcomes.cancelled,
        failures=outcomes.failures,
        frames=frames,
        frames_per_second=rate,
        frames_per_second_per_gpu=rate / report.num_gpus if rate and report.num_gpus else None,
        metrics=metrics,
        by_tenant=groups(run, {record.id: record.tenant for record in records}),
        by_shape=groups(run, {record.id: record.shape for record in records}),
        by_chunk=by_chunk(records, percentiles, seed),
        polled_e2el_low=polled_low(records, percentiles, seed),
        slo_attainment=wilson(len(good), outcomes.offered),
        good=len(good),
        frame_goodput=sum(record.num_frames for record in good) / max(run.seconds, 1e-9),
        fairness=fairness(run.records, run.window, run.workload.tenants.weight, buffer),
        player=player_of(records, buffer),
        client=client,
        server=ServerSummary(run.server_version, run.counts),
        energy=run.energy,
        cost=cost_of(run, frames),
        alone_e2el_ms=None
        if run.alone is None
        else {shape: 1000 * seconds for shape, seconds in run.alone.items()},
        workload=WorkloadSummary(seed, run.workload.sha256, None),
        machine=this_machine(),
        command=command,
    )


def frames_in(records: Sequence[SessionRecord], window: tuple[float, float]) -> int:
    """Return the frames of the chunks that arrived in the window."""
    start, end = window
    return sum(
        chunk.frames for record in records for chunk in record.deliveries if start < chunk.at <= end
    )


def groups(run: LoadRun, names: Mapping[int, str]) -> dict[str, GroupSummary]:
    """Summarize the sessions of each name; nothing if there is only one name."""
    percentiles = percentiles_of(run.report.metric_percentiles)
    found = {}
    for name in sorted(set(names.values())) if len(set(names.values())) > 1 else ():
        own = [record for record in run.counted if names[record.id] == name]
        found[name] = GroupSummary(
            len(own),
            Outcomes.of(own).completed,
            sum(record.frames for record in own),
            summarize_all(own, run.report.start_buffer, percentiles, run.workload.options.seed),
        )
    return found


def by_chunk(
    records: Sequence[SessionRecord], percentiles: Sequence[float], seed: int
) -> dict[str, MetricSummary]:
    """Summarize inter-chunk latencies by the number of the chunk: the window of the model is full
    from the fourth chunk on. "0" is the time to the first chunk.
    """
    sessions = [session_metrics(record, 0) for record in records if record.is_served]
    parts = {
        "0": [[own.ttfc] for own in sessions if own.ttfc is not None],
        "1-2": [own.icls[:2] for own in sessions],
        "3+": [own.icls[2:] for own in sessions],
    }
    return {
        name: summarize(values, "ms", percentiles, seed, per_chunk=True)
        for name, values in parts.items()
        if any(values)
    }


def polled_low(
    records: Sequence[SessionRecord], percentiles: Sequence[float], seed: int
) -> MetricSummary | None:
    """Summarize lower bounds of polled latencies. True values lie between these and `e2el`."""
    lows = [
        [record.polled[0] - record.intended]
        for record in records
        if record.polled is not None and record.outcome == "completed"
    ]
    return summarize(lows, "ms", percentiles, seed, per_chunk=False) if lows else None


def player_of(records: Sequence[SessionRecord], buffer: float) -> PlayerSummary | None:
    """Summarize playback of the served sessions; None if no chunk was seen."""
    found = [session_metrics(record, buffer) for record in records if record.is_served]
    needed = [own.needed_buffer for own in found if own.needed_buffer is not None]
    if not needed:
        return None
    stalled = sum(own.stall_seconds or 0.0 for own in found)
    played = sum(record.frames / record.fps for record in records if record.is_served)
    return PlayerSummary(
        buffer,
        wilson(sum(own.stalls == 0 for own in found if own.stalls is not None), len(needed)),
        {
            f"{size:g}": sum(each <= size for each in needed) / len(needed)
            for size in STALL_FREE_BUFFERS
        },
        sum(own.stalls or 0 for own in found),
        stalled,
        stalled / (stalled + played) if played else None,
    )


def client_of(run: LoadRun) -> ClientSummary:
    lags = run.client.lags or [0.0]
    sends = [record.sent - record.released for record in run.records if record.sent is not None]
    floor = run.client.null_ttfc
    return ClientSummary(
        lag_p99_ms=1000 * quantile(lags, 0.99),
        send_lag_p99_ms=1000 * quantile(sends or [0.0], 0.99),
        cpu=run.client.cpu,
        cpu_ms_per_session=1000 * run.client.cpu * run.seconds / max(len(run.records), 1),
        memory_mib=run.client.memory_mib,
        null_ttfc_p99_ms=None if floor is None else 1000 * floor,
        version=__version__,
        python=platform.python_version(),
    )


def invalid_because(
    run: LoadRun, outcomes: Outcomes, client: ClientSummary, metrics: Mapping[str, MetricSummary]
) -> list[str]:
    """Return the reasons why the run's numbers must not be used."""
    reasons = []
    if run.stopped_because is not None:
        reasons.append(run.stopped_because)
    if outcomes.accounted != outcomes.offered:
        reasons.append(
            f"{outcomes.offered - outcomes.accounted} of {outcomes.offered} sessions have no end"
        )
    if not outcomes.completed:
        reasons.append("no session was completed")
    median = metrics["ttfc"].percentiles.get("50") if "ttfc" in metrics else None
    limit = 1000 * max(MAX_LAG, LAG_SHARE * (median.value / 1000 if median else 0.0))
    for name, lag in (("event loop", client.lag_p99_ms), ("sending", client.send_lag_p99_ms)):
        if lag > limit:
            reasons.append(
                f"the client lags: {name} p99 {lag:.1f} ms, allowed {limit:.1f} ms; use a machine "
                "with free cores, or a lower rate"
            )
    return reasons


def rate_of(load: LoadOptions) -> float | str:
    """Return the requested rate in sessions per second; "inf" is a string, as in vLLM."""
    return "inf" if math.isinf(load.request_rate) else load.request_rate


def percentiles_of(text: str) -> list[float]:
    """Parse `--metric-percentiles`. Raises InvalidRequestError."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = [-1.0]
    if not all(0 < percent < 100 for percent in found):
        raise InvalidRequestError(
            f"got --metric-percentiles {text!r}, expected numbers between 0 and 100, such as "
            "50,90,99",
            param="metric_percentiles",
        )
    return sorted(set(found) | {50.0})


def metadata_of(texts: Sequence[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in texts]
    for name, separator, _ in pairs:
        if not (name and separator):
            raise InvalidRequestError(
                f"got --metadata {name!r}, expected KEY=VALUE", param="metadata"
            )
    return {name: value for name, _, value in pairs}


def flat_metrics(metrics: Mapping[str, MetricSummary]) -> dict[str, float]:
    """Return vLLM's flat keys, such as p99_ttfc_ms; ttft and itl are aliases of ttfc and icl."""
    names = {name: name for name in metrics} | {
        alias: name for alias, name in (("ttft", "ttfc"), ("itl", "icl")) if name in metrics
    }
    found: dict[str, float] = {}
    for shown, name in names.items():
        own = metrics[name]
        ending = f"{shown}_ms" if own.unit == "ms" else shown
        found |= {f"mean_{ending}": own.mean, f"std_{ending}": own.std}
        found |= {
            f"p{percent}_{ending}": own.percentiles[percent].value for percent in own.percentiles
        }
        found[f"median_{ending}"] = own.percentiles["50"].value
    return found


def sglang_latencies(e2el: MetricSummary) -> dict[str, float]:
    """Return the latencies of SGLang's benchmark of diffusion models, in seconds."""
    found = {f"latency_p{name}": at.value / 1000 for name, at in e2el.percentiles.items()}
    return found | {
        "latency_mean": e2el.mean / 1000,
        "latency_median": e2el.percentiles["50"].value / 1000,
    }


def detailed(records: Sequence[SessionRecord]) -> dict[str, Any]:
    """Return vLLM's arrays, with one item per session, in seconds."""
    own = [session_metrics(record, 0) for record in records]
    return {
        "start_times": [record.intended for record in records],
        "latencies": [each.e2el for each in own],
        "ttfts": [each.ttfc for each in own],
        "itls": [each.icls for each in own],
        "queue_times": [each.send_lag for each in own],
        "errors": [record.error or "" for record in records],
    }
