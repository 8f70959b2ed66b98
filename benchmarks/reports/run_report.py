"""The report of one run: verdict, numbers, and plots."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from helios_serve.benchmarks.measure.load_run import LoadRun
from helios_serve.benchmarks.measure.summary import METRICS
from helios_serve.benchmarks.reports import page, plots


class Panel(NamedTuple):
    """A plot, what it shows, and its height in inches; a wide one takes the whole page."""

    title: str
    text: str
    draw: plots.Draw
    height: float = plots.HEIGHT
    is_wide: bool = False


PANELS = (
    Panel(
        "Load",
        "Sessions by the time they were to start, and how many ran. Shaded: outside the window.",
        plots.load_over_time,
    ),
    Panel(
        "Time to first chunk",
        "Share of sessions whose first chunk had come after this time.",
        plots.ttfc_by_tenant,
    ),
    Panel(
        "Start-up buffer",
        "Share of sessions that play without a stall, if the player waits for this long.",
        plots.needed_buffers,
    ),
    Panel(
        "Real-time factor over time",
        "Time from one chunk to the next, divided by its playback time. Above 1 it is too slow.",
        plots.rtf_over_time,
    ),
    Panel(
        "Latency by chunk",
        "The model's history is full from the fourth chunk (number 3) on.",
        plots.icl_by_chunk,
    ),
    Panel("Frames per second", "Frames by the arrival of their chunks.", plots.frames_over_time),
    Panel("Tenants", "Frames of each tenant, and its weight.", plots.tenant_shares),
    Panel(
        "This client",
        "How late this client sent sessions. Latencies must be much longer than this.",
        plots.send_lags,
    ),
    Panel(
        "Sessions",
        f"The first {plots.MAX_BARS} sessions from their intended starts.",
        plots.waterfall,
        6.5,
        is_wide=True,
    ),
)


def run_report(result: dict[str, Any], run: LoadRun) -> str:
    """Return the report of a run as HTML."""
    has_chunks = any(record.chunks for record in run.records)
    shown = [panel for panel in PANELS if has_chunks or panel.draw not in NEEDS_CHUNKS]
    drawn = [
        page.plot(panel.title, panel.text, draw(panel, run), is_wide=panel.is_wide)
        for panel in shown
    ]
    label = f": {result['label']}" if result["label"] else ""
    return page.page(
        f"Benchmark of {result['model_id'] or result['backend']}{label}",
        [*header(result), metric_table(result["helios"]), page.plots(drawn)],
    )


NEEDS_CHUNKS = (
    plots.ttfc_by_tenant,
    plots.needed_buffers,
    plots.rtf_over_time,
    plots.icl_by_chunk,
)


def draw(panel: Panel, run: LoadRun) -> str:
    width = 2 * plots.WIDTH if panel.is_wide else plots.WIDTH
    return plots.svg_of(lambda axes: panel.draw(axes, run), width, panel.height)


def header(result: dict[str, Any]) -> Iterator[str]:
    """Yield the verdict, what ran where, and the main numbers."""
    block = result["helios"]
    if block["valid"]:
        yield page.verdict("Valid run", is_good=True)
    else:
        reasons = "; ".join(block["invalid_because"])
        yield page.verdict(f"Invalid run, do not use its numbers: {reasons}", is_good=False)
    machine = block["machine"]
    gpus = ", ".join(machine["gpus"]) or "no GPU"
    yield page.paragraph(
        f"{result['date']}, {result['backend']} {block['server']['version'] or ''}, "
        f"{block['loop']} loop, chunks timed by {block['timing']}. "
        f"Client: {machine['cpu']}, {machine['cores']} "
        f"cores, {gpus}."
    )
    yield page.command(block["command"])
    yield page.numbers(main_numbers(result))


def main_numbers(result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    block = result["helios"]
    refused = sum(block["refused"].values())
    yield "sessions completed of those offered", f"{result['completed']} / {block['offered']}"
    yield "refused", str(refused)
    share = block["slo_attainment"]
    if share["low"] is not None:
        low, high = share["low"], share["high"]
        name = f"good sessions (90% interval {low:.0%} to {high:.0%})"
        yield name, f"{share['value']:.1%}"
    if block["frames_per_second"] is not None:
        yield "frames per second in the window", f"{block['frames_per_second']:.1f}"
    for key, name in (("ttfc", "time to first chunk, p50"), ("icl", "inter-chunk latency, p50")):
        if key in block["metrics"]:
            yield name, f"{block['metrics'][key]['percentiles']['50']['value'] / 1000:.2f} s"
    if block["player"] is not None:
        buffer = block["player"]["buffer"]
        stall_free = block["player"]["stall_free"]["value"]
        yield f"without a stall at a buffer of {buffer:g} s", f"{stall_free:.1%}"
    if block["fairness"]["jain"] is not None:
        yield "Jain's index of fairness", f"{block['fairness']['jain']:.3f}"


def metric_table(block: dict[str, Any]) -> str:
    """Return all metrics with their intervals, in seconds or as ratios."""
    metrics = block["metrics"]
    percentiles = list(next(iter(metrics.values()))["percentiles"]) if metrics else []
    head = ["metric (90% intervals below)", "n", "mean", *(f"p{each}" for each in percentiles)]
    rows = []
    for name, own in metrics.items():
        scale = 1000 if own["unit"] == "ms" else 1
        unit = " (s)" if own["unit"] == "ms" else ""
        mean = {"value": own["mean"], "low": own["mean_low"], "high": own["mean_high"]}
        cells = [bounded(at, scale) for at in (mean, *own["percentiles"].values())]
        rows.append([METRICS[name].title + unit, str(own["n"]), *cells])
    return page.table(head, rows)


def bounded(at: dict[str, Any], scale: float) -> str:
    value, low, high = at["value"] / scale, at["low"], at["high"]
    if low is None and high is None:
        return f"{value:.3f}"
    if high is None:
        return f"≥ {low / scale:.3f}\ntoo few values"
    below = "…" if low is None else f"{low / scale:.3f}"
    return f"{value:.3f}\n{below} to {high / scale:.3f}"
