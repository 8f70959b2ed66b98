"""Reports of sweeps and comparisons."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes

from helios_serve.benchmarks.load.search import Capacity
from helios_serve.benchmarks.measure.comparison import Compared
from helios_serve.benchmarks.reports import page
from helios_serve.benchmarks.reports.plots import BAD, COLOURS, INK, svg_of


def sweep_report(
    loads: Sequence[tuple[str, float]],
    results: Sequence[dict[str, Any]],
    capacity: Capacity | None,
    *,
    target: float,
    command: str,
) -> str:
    """Return the report of a sweep. `loads` has the name and the size of each result's load."""
    name = loads[0][0]

    def good(axes: Axes) -> None:
        for (_, load), result in zip(loads, results, strict=True):
            share = result["helios"]["slo_attainment"]
            below, above = share["value"] - share["low"], share["high"] - share["value"]
            axes.errorbar(
                [load], [share["value"]], yerr=[[max(below, 0)], [max(above, 0)]], fmt="o",
                capsize=3, color=COLOURS[0],
            )  # fmt: skip
        axes.axhline(target, color=BAD, linestyle="--", label=f"target {target:g}")
        if capacity is not None and capacity.passed is not None:
            text = f"capacity {capacity.passed:g}"
            axes.axvline(capacity.passed, color=COLOURS[2], linestyle="--", label=text)
        axes.set(xlabel=name, ylabel="share of good sessions", ylim=(-0.02, 1.05))
        axes.legend(loc="lower left")

    def pareto(axes: Axes) -> None:
        highest = 1.0
        for (_, load), result in zip(loads, results, strict=True):
            rate, metrics = result["helios"]["frames_per_second"], result["helios"]["metrics"]
            if rate is not None and "ttfc" in metrics:
                latency = metrics["ttfc"]["percentiles"]["50"]["value"] / 1000
                highest = max(highest, rate)
                axes.plot([latency], [rate], "o", color=COLOURS[0])
                axes.annotate(
                    f"{load:g}", (latency, rate), textcoords="offset points", xytext=(5, 4)
                )
        axes.set(xlabel="time to first chunk, p50 (s)", ylabel="frames per second")
        axes.set_ylim(0, 1.15 * highest)

    return page.page(
        f"Sweep over {name}",
        [
            page.command(command),
            table_of(loads, results),
            page.plots(
                [
                    page.plot("Good sessions", "With Wilson's 90% intervals.", svg_of(good)),
                    page.plot("Throughput and latency", "Each point is a load.", svg_of(pareto)),
                ]
            ),
        ],
    )


def table_of(loads: Sequence[tuple[str, float]], results: Sequence[dict[str, Any]]) -> str:
    rows = [
        (
            f"{load:g}",
            str(block["offered"]),
            f"{block['slo_attainment']['value']:.1%}",
            f"{block['frames_per_second'] or 0:.1f}",
            "" if block["valid"] else "; ".join(block["invalid_because"]),
        )
        for (_, load), block in zip(loads, (result["helios"] for result in results), strict=True)
    ]
    return page.table((loads[0][0], "offered", "good", "frames/s", "invalid because"), rows)


def compare_report(compared: Sequence[Compared], names: tuple[str, str], command: str) -> str:
    """Return the report of a comparison: a forest plot of the ratios, and a table."""
    colours = {"regression": BAD, "pass": COLOURS[2], "inconclusive": COLOURS[5], None: COLOURS[0]}

    def forest(axes: Axes) -> None:
        for row, each in enumerate(compared):
            colour = colours[each.verdict]
            if each.ratio.low is not None and each.ratio.high is not None:
                axes.plot([each.ratio.low, each.ratio.high], [row, row], color=colour)
            axes.plot([each.ratio.value], [row], "o", color=colour)
            if each.gate is not None:
                axes.plot([each.gate.limit], [row], "|", color=BAD, markersize=14)
        axes.axvline(1, color=INK, linestyle="--")
        axes.set_yticks(range(len(compared)), [each.key for each in compared])
        axes.invert_yaxis()
        axes.set_xlabel("new / base, with 90% intervals; red ticks: gates")

    rows = [
        (
            each.key,
            f"{each.base:.3f}",
            f"{each.new:.3f}",
            f"{each.ratio.value:.3f}",
            "" if each.ratio.low is None else f"{each.ratio.low:.3f} to {each.ratio.high:.3f}",
            each.verdict or "",
        )
        for each in compared
    ]
    height = 1.2 + 0.32 * len(compared)
    return page.page(
        f"{names[1]} against {names[0]}",
        [
            page.command(command),
            page.plots([page.plot("Ratios", "", svg_of(forest, 11.0, height), is_wide=True)]),
            page.table(("key", "base", "new", "ratio", "90% interval", "verdict"), rows),
        ],
    )
