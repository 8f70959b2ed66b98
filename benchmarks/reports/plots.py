"""Plots of one run, as SVG.

Text and axes take the colour of the page, so that they can be read on light and dark ones.
"""

from collections.abc import Callable, Sequence
from io import StringIO
from typing import Any

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from helios_serve.benchmarks.measure.load_run import LoadRun
from helios_serve.benchmarks.measure.metrics import SessionMetrics, session_metrics
from helios_serve.benchmarks.measure.playback import stalls
from helios_serve.benchmarks.measure.record import SessionRecord

INK = "#7f8a99"
"""Colour of text and axes in the SVG, which the page replaces by its own."""
COLOURS = ("#2f7ed8", "#e8863a", "#2ca58d", "#c2528b", "#8d6cc9", "#a8862b", "#5b9bb5", "#b3554d")
BAD = "#d64545"
WIDTH, HEIGHT = 7.6, 3.4
"""Inches."""
MAX_BARS = 60
BIN = 10.0
"""Seconds of a bin over time; shorter runs have bins of a tenth of their length."""

Draw = Callable[[Axes, LoadRun], None]


def svg_of(draw: Callable[[Axes], None], width: float = WIDTH, height: float = HEIGHT) -> str:
    """Draw on new axes, and return the SVG element."""
    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "helios",  # or ids would be random
        "font.family": "sans-serif",
        "font.size": 10,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.prop_cycle": cycler(color=COLOURS),
        "axes.grid": True,
        "grid.color": INK,
        "grid.alpha": 0.2,
        "legend.frameon": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure.subplots())
        text = StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :].replace(INK, "currentColor")


def load_over_time(axes: Axes, run: LoadRun) -> None:
    """1: sessions offered, accepted and refused, and how many run."""
    records = run.records
    offered = [record.intended for record in records]
    accepted = [record.accepted for record in records if record.accepted is not None]
    refused = [record.ended for record in records if record.outcome == "refused" and record.ended]
    for times, name, colour in (
        (offered, "offered", COLOURS[0]),
        (accepted, "accepted", COLOURS[2]),
        (refused, "refused", BAD),
    ):
        if times:
            steps(axes, sorted(times), name, colour)
    axes.set(xlabel="time (s)", ylabel="sessions, cumulated")
    running = sorted(
        change
        for record in records
        if record.accepted is not None and record.ended is not None
        for change in ((record.accepted, 1), (record.ended, -1))
    )
    right = axes.twinx()
    right.grid(visible=False)
    right.spines["right"].set_visible(True)
    times = [0.0, *(at for at, _ in running)]
    counts = np.cumsum([0, *(change for _, change in running)])
    right.fill_between(times, counts, step="post", alpha=0.25, color=COLOURS[1], linewidth=0)
    right.set_ylabel("running sessions (filled)")
    right.set_ylim(bottom=0)
    mark_window(axes, run)
    axes.legend(loc="upper left")


def ttfc_by_tenant(axes: Axes, run: LoadRun) -> None:
    """2: distribution of the time to the first chunk, with the bound of the SLO."""
    for tenant, records in by_tenant(run).items():
        values = [own.ttfc for own in metrics_of(run, records) if own.ttfc is not None]
        ecdf(axes, values, tenant)
    for text in run.report.goodput:
        key, _, limit = text.partition(":")
        if key == "ttfc":
            axes.axvline(float(limit) / 1000, color=BAD, linestyle="--", label="SLO")
    axes.set(xlabel="time to first chunk (s)", ylabel="share of sessions", ylim=(0, 1.02))
    legend(axes)


def needed_buffers(axes: Axes, run: LoadRun) -> None:
    """3: share of sessions without a stall, over the start-up buffer."""
    for tenant, records in by_tenant(run).items():
        found = metrics_of(run, records)
        values = [own.needed_buffer for own in found if own.needed_buffer is not None]
        ecdf(axes, values, tenant, start=0.0)
    buffer = run.report.start_buffer
    axes.axvline(buffer, color=INK, linestyle="--", label=f"buffer of {buffer:g} s")
    axes.set(xlabel="start-up buffer (s)", ylabel="share without a stall", ylim=(0, 1.02))
    legend(axes)


def rtf_over_time(axes: Axes, run: LoadRun) -> None:
    """4: real-time factor of chunks: above 1, a chunk takes longer than it plays."""
    points = [
        (chunk.at, (chunk.at - before.at) * record.fps / chunk.frames)
        for record in run.records
        for before, chunk in zip(record.chunks, record.chunks[1:], strict=False)
    ]
    edges = bins(run)
    middles, rows = [], []
    for start, end in zip(edges, edges[1:], strict=False):
        inside = [rtf for at, rtf in points if start < at <= end]
        if inside:
            middles.append((start + end) / 2)
            rows.append(np.quantile(inside, [0.5, 0.9, 0.99]))
    if rows:
        p50, p90, p99 = np.array(rows).T
        axes.fill_between(middles, p50, p99, alpha=0.2, color=COLOURS[0], linewidth=0)
        axes.plot(middles, p50, marker="o", markersize=3, label="p50", color=COLOURS[0])
        axes.plot(middles, p90, marker="o", markersize=3, label="p90", color=COLOURS[1])
        axes.plot(middles, p99, marker="o", markersize=3, label="p99", color=COLOURS[3])
    axes.axhline(1, color=BAD, linestyle="--", label="real time")
    axes.set(xlabel="time (s)", ylabel="real-time factor of chunks", ylim=(0, None))
    mark_window(axes, run)
    legend(axes)


def icl_by_chunk(axes: Axes, run: LoadRun) -> None:
    """5: inter-chunk latency by the number of the chunk: the window fills in the first ones."""
    sessions = [own.icls for own in metrics_of(run, run.counted) if own.icls]
    longest = max(map(len, sessions), default=0)
    numbers = list(range(1, longest + 1))
    rows = [
        np.quantile([icls[index] for icls in sessions if len(icls) > index], [0.5, 0.1, 0.9])
        for index in range(longest)
    ]
    if rows:
        p50, p10, p90 = np.array(rows).T
        axes.errorbar(
            numbers, p50, yerr=[p50 - p10, p90 - p50], fmt="o", markersize=4, capsize=2,
            label="p50, with p10 and p90",
        )  # fmt: skip
        axes.legend(loc="best")
    axes.set(xlabel="number of the chunk", ylabel="inter-chunk latency (s)", ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def frames_over_time(axes: Axes, run: LoadRun) -> None:
    """6: frames per second, and the server's blocks and workers, if it has metrics."""
    chunks = [chunk for record in run.records for chunk in record.deliveries]
    edges = bins(run)
    counts, _ = np.histogram(
        [chunk.at for chunk in chunks], edges, weights=[chunk.frames for chunk in chunks]
    )
    axes.stairs(counts / np.diff(edges), edges, fill=True, alpha=0.5, color=COLOURS[0])
    axes.set(xlabel="time (s)", ylabel="frames per second", ylim=(0, None))
    mark_window(axes, run)
    used = gauge(run, "history_blocks_used")
    total = gauge(run, "history_blocks_total")
    if used and any(value for _, value in total):
        right = axes.twinx()
        right.grid(visible=False)
        right.spines["right"].set_visible(True)
        share = [100 * a / b for (_, a), (_, b) in zip(used, total, strict=True) if b]
        times = [at for (at, _), (_, b) in zip(used, total, strict=True) if b]
        right.plot(times, share, color=COLOURS[1])
        right.set(ylim=(0, 105))
        right.set_ylabel("history blocks in use (%)", color=COLOURS[1])


def waterfall(axes: Axes, run: LoadRun) -> None:
    """7: the first sessions: waiting, playing, stalls, and each chunk as it came."""
    for row, record in enumerate(run.records[:MAX_BARS]):
        end = record.ended if record.ended is not None else record.intended
        first = record.chunks[0].at if record.chunks else end
        axes.barh(row, first - record.intended, left=record.intended, color=COLOURS[5], height=0.7)
        axes.barh(row, end - first, left=first, color=COLOURS[0], alpha=0.45, height=0.7)
        if record.chunks:
            for start, stop in stalls(record.chunks, record.fps, run.report.start_buffer):
                axes.barh(row, stop - start, left=start, color=BAD, height=0.3)
        axes.plot(
            [chunk.at for chunk in record.chunks], [row] * len(record.chunks), "|", color=INK,
            markersize=5,
        )  # fmt: skip
        if record.outcome != "completed":
            axes.plot([end], [row], "x", color=BAD, markersize=6)
    for label, colour in (("waits", COLOURS[5]), ("receives", COLOURS[0]), ("stalled", BAD)):
        axes.barh(0, 0, color=colour, label=label)
    axes.plot([], [], "|", color=INK, label="chunk")
    axes.plot([], [], "x", color=BAD, linestyle="none", label="not completed")
    axes.set(xlabel="time (s)", ylabel="session", ylim=(min(len(run.records), MAX_BARS), -1))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=5)


def tenant_shares(axes: Axes, run: LoadRun) -> None:
    """8: each tenant's share of the frames, next to its weight."""
    frames = {
        tenant: sum(record.frames for record in records)
        for tenant, records in by_tenant(run).items()
    }
    weights = {tenant: run.workload.tenants.weight(tenant) for tenant in frames}
    places = np.arange(len(frames))
    for shift, values, name in ((-0.2, frames, "frames"), (0.2, weights, "weight")):
        total = sum(values.values()) or 1
        heights = [100 * values[tenant] / total for tenant in frames]
        axes.bar(places + shift, heights, 0.38, label=name)
    axes.set_xticks(places, list(frames))
    axes.set(ylabel="share (%)", ylim=(0, None))
    legend(axes)


def send_lags(axes: Axes, run: LoadRun) -> None:
    """9: how late this client sent sessions that were ready to send."""
    lags = [
        1000 * (record.sent - record.released) for record in run.records if record.sent is not None
    ]
    ecdf(axes, lags, "sending")
    ecdf(axes, [1000 * lag for lag in run.client.lags], "event loop")
    axes.set(xlabel="delay of this client (ms)", ylabel="share", ylim=(0, 1.02))
    legend(axes)


def steps(axes: Axes, times: Sequence[float], name: str, colour: str) -> None:
    axes.step(times, range(1, len(times) + 1), where="post", label=name, color=colour)


def ecdf(axes: Axes, values: Sequence[float], name: str, start: float | None = None) -> None:
    """Draw the share of values up to each one; `start`: where the line begins."""
    if not values:
        return
    ordered = sorted(values)
    begin = ordered[0] if start is None else start
    shares = [0.0, *(np.arange(1, len(ordered) + 1) / len(ordered))]
    axes.step([begin, *ordered], shares, where="post", label=f"{name} (n = {len(ordered)})")


def legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best")


def mark_window(axes: Axes, run: LoadRun) -> None:
    """Shade what lies outside the measurement window."""
    start, end = run.window
    last = max(run.seconds, end)
    for left, right in ((0.0, start), (end, last)):
        if right > left:
            axes.axvspan(left, right, color=INK, alpha=0.12, linewidth=0)


def bins(run: LoadRun) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    last = max(run.seconds, 1e-3)
    width = min(BIN, last / 10)
    return np.arange(0, last + width, width)


def by_tenant(run: LoadRun) -> dict[str, list[SessionRecord]]:
    names = sorted({record.tenant for record in run.counted})
    return {name: [item for item in run.counted if item.tenant == name] for name in names}


def metrics_of(run: LoadRun, records: Sequence[SessionRecord]) -> list[SessionMetrics]:
    buffer = run.report.start_buffer
    return [session_metrics(record, buffer) for record in records if record.is_served]


def gauge(run: LoadRun, name: str) -> list[tuple[float, float]]:
    """Return a gauge of the server over time, summed over its labels."""
    found = []
    for sample in run.samples:
        values = [value for key, value in sample.values.items() if name in key]
        if values:
            found.append((sample.at, sum(values)))
    return found
