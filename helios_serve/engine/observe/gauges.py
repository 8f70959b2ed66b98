"""Gauges of engines and workers, set when metrics are scraped."""

from collections.abc import Mapping, Sequence

from helios_serve.engine.loop.engine_core import EngineStats
from helios_serve.engine.loop.worker_handle import WorkerReport
from helios_serve.metrics import Metrics


def update(
    metrics: Metrics,
    stats: Mapping[str, EngineStats],
    workers: Mapping[str, Sequence[WorkerReport]],
) -> None:
    """Set all gauges, by model; those of workers that are gone are removed."""
    for model, (scheduler, encoding, decoding, _) in stats.items():
        for state, number in (("waiting", scheduler.waiting), ("running", scheduler.running)):
            metrics.sessions.labels(model, state).set(number)
        for kind, number in (("encode", encoding), ("decode", decoding)):
            metrics.tasks.labels(model, kind).set(number)
        metrics.blocks_used.labels(model).set(scheduler.used_blocks)
        metrics.blocks_total.labels(model).set(scheduler.total_blocks)
        metrics.preemptions.labels(model).set(scheduler.preemptions)
        metrics.deadline_misses.labels(model).set(scheduler.deadline_misses)
    metrics.workers.clear()
    for model, reports in workers.items():
        for report in reports:
            is_up = report.state != "starting"
            metrics.workers.labels(model, report.worker_id).set(is_up)
