"""The summary of a result as text, in the manner of vLLM's benchmarks."""

import math
from collections.abc import Iterator
from typing import Any

from helios_serve.benchmarks.measure.statistics import CONFIDENCE
from helios_serve.benchmarks.measure.summary import METRICS

WIDTH = 78


def printed(result: dict[str, Any], names: list[str]) -> str:
    """Return the text of a result. `names` are the metrics that are shown."""
    return "\n".join(lines_of(result, names))


def result_line(result: dict[str, Any]) -> str:
    """Return a result in one line."""
    block = result["helios"]
    share = block["slo_attainment"]
    interval = ""
    if share["low"] is not None:
        interval = f" (90% interval {share['low']:.1%} to {share['high']:.1%})"
    rate = block["frames_per_second"]
    frames = "" if rate is None else f", {rate:.1f} frames/s"
    ttfc = block["metrics"].get("ttfc")
    first = "" if ttfc is None else f", first chunk p50 {ttfc['percentiles']['50']['value']:.0f} ms"
    bad = "" if block["valid"] else f", INVALID: {'; '.join(block['invalid_because'])}"
    return f"{block['good']} of {block['offered']} sessions good{interval}{first}{frames}{bad}"


def lines_of(result: dict[str, Any], names: list[str]) -> Iterator[str]:
    block = result["helios"]
    yield " Benchmark result ".center(WIDTH, "=")
    yield from run_lines(result)
    yield from rate_lines(result)
    yield from metric_lines(block, names)
    yield from player_lines(block)
    yield from fairness_lines(block)
    if block["timing"] != "simulated":  # or there was no client
        yield from client_lines(block)
    yield "=" * WIDTH
    if not block["valid"]:
        yield "INVALID RUN, do not use its numbers:"
        yield from (f"  - {reason}" for reason in block["invalid_because"])


def run_lines(result: dict[str, Any]) -> Iterator[str]:
    block = result["helios"]
    refused = sum(block["refused"].values())
    loop = "open (sessions start at their own times)"
    if block["loop"] == "closed":
        loop = f"closed ({result['max_concurrency']} users)"
    yield row("Loop", loop)
    yield row("Chunks timed by", timing_text(block))
    start, end = block["window"]
    yield row("Measurement window", f"{start:.1f} s to {end:.1f} s of {result['duration']:.1f} s")
    yield row(
        "Sessions",
        f"{block['offered']} offered = {result['completed']} completed"
        f" + {result['failed'] - refused - block['timed_out']} failed + {refused} refused"
        f" + {block['timed_out']} timed out + {block['cancelled']} cancelled",
    )
    for title, codes in (("  refused", block["refused"]), ("  failed", block["failures"])):
        if codes:
            yield row(title, ", ".join(f"{count} {code}" for code, count in codes.items()))


def timing_text(block: dict[str, Any]) -> str:
    texts = {
        "media": "their last byte at the client",
        "events": "the server's events (available, not delivered)",
        "engine": "the engine, when it has them (nothing is delivered)",
        "simulated": "virtual time: nothing was measured",
        "poll": f"polls every {block['poll_interval']} s: no chunks, latencies are intervals",
    }
    return texts[block["timing"]]


def rate_lines(result: dict[str, Any]) -> Iterator[str]:
    block = result["helios"]
    attained = block["slo_attainment"]
    yield row("Sessions completed per second", f"{result['request_throughput']:.3f}")
    if block["frames_per_second"] is not None:
        yield row("Frames per second in the window", f"{block['frames_per_second']:.1f}")
    if block["frames_per_second_per_gpu"] is not None:
        yield row("Frames per second per GPU", f"{block['frames_per_second_per_gpu']:.1f}")
    yield row(
        "Good sessions, of those offered",
        f"{block['good']} of {block['offered']}: {percent(attained)}",
    )
    yield row("Goodput", f"{result['request_goodput']:.3f} sessions/s")
    if block["alone_e2el_ms"] is not None:
        for shape, milliseconds in block["alone_e2el_ms"].items():
            yield row("End-to-end latency alone", f"{milliseconds:.0f} ms ({shape})")
    energy = block["energy"]
    if energy is not None and energy["joules_per_frame"] is not None:
        sources = " and ".join(energy["by_source"])
        yield row("Energy of this machine", f"{energy['joules_per_frame']:.3f} J/frame ({sources})")
    if block["cost"] is not None and block["cost"]["per_video_minute"] is not None:
        yield row("Price of a minute of video", f"{block['cost']['per_video_minute']:.4f}")


def metric_lines(block: dict[str, Any], names: list[str]) -> Iterator[str]:
    shown = [name for name in names if name in block["metrics"]]
    for name in shown:
        own = block["metrics"][name]
        unit = " (ms)" if own["unit"] == "ms" else ""
        yield f" {METRICS[name].title}{unit}, n = {own['n']} ".center(WIDTH, "-")
        yield row("mean", bounded(own["mean"], own["mean_low"], own["mean_high"], own["unit"]))
        for percentile, at in own["percentiles"].items():
            yield row(f"p{percentile}", percentile_text(percentile, at, own))
    low = block["polled_e2el_low"]
    if low is not None:
        yield row("true end is later than (p50)", f"{low['percentiles']['50']['value']:.1f} ms")


def percentile_text(percentile: str, at: dict[str, Any], own: dict[str, Any]) -> str:
    """Return a percentile with its 90 % interval. Without an upper bound, it is at least the lower
    one: that is all that so few samples say.
    """
    if at["high"] is not None or at["low"] is None:
        return bounded(at["value"], at["low"], at["high"], own["unit"])
    needed = math.ceil(math.log(1 - CONFIDENCE) / math.log(float(percentile) / 100))
    low = number(at["low"], own["unit"])
    return f">= {low}   (an upper bound needs about {needed} values)"


def bounded(value: float, low: float | None, high: float | None, unit: str) -> str:
    if low is None or high is None:
        return f"   {number(value, unit)}   (too few values for an interval)"
    bounds = f"[{number(low, unit).strip()}, {number(high, unit).strip()}]"
    return f"   {number(value, unit)}   90% interval {bounds}"


def number(value: float, unit: str) -> str:
    return f"{value:12.{1 if unit == 'ms' else 3}f}"


def player_lines(block: dict[str, Any]) -> Iterator[str]:
    player = block["player"]
    if player is None:
        return
    title = f" Playback with a start-up buffer of {player['buffer']:g} s "
    yield title.center(WIDTH, "-")
    yield row("sessions without a stall", percent(player["stall_free"]))
    shares = (
        f"{buffer} s: {share:.0%}" for buffer, share in player["stall_free_by_buffer"].items()
    )
    yield row("the same by buffer", ", ".join(shares))
    yield row("stalls", f"{player['stalls']}, together {player['stall_seconds']:.2f} s")


def fairness_lines(block: dict[str, Any]) -> Iterator[str]:
    found = block["fairness"]
    if len(found["shares"]) < 2:
        return
    yield " Fairness ".center(WIDTH, "-")
    if found["jain"] is None:
        yield row("Jain's index", "none: fewer than two tenants were backlogged all the time")
    else:
        yield row("Jain's index", f"{found['jain']:.3f} over {', '.join(found['counted'])}")
    for name, share in found["shares"].items():
        rate = share["weighted_rate"]
        text = "never waited" if rate is None else f"{rate:.2f} frames/s per weight"
        yield row(f"  {name}", f"{text}, backlogged {share['backlogged']:.0%} of the window")


def client_lines(block: dict[str, Any]) -> Iterator[str]:
    client = block["client"]
    floor = client["null_ttfc_p99_ms"]
    against = "" if floor is None else f", first chunk of a null server p99 {floor:.1f} ms"
    yield " Client ".center(WIDTH, "-")
    yield row(
        "its own delay",
        f"sending p99 {client['send_lag_p99_ms']:.1f} ms, event loop p99 "
        f"{client['lag_p99_ms']:.1f} ms{against}",
    )
    yield row(
        "its CPU and memory",
        f"{client['cpu']:.0%} of a core, {client['cpu_ms_per_session']:.1f} ms per session, "
        f"{client['memory_mib']:.0f} MiB",
    )


def percent(share: Any) -> str:
    if share["low"] is None:
        return "none"
    return f"{share['value']:.1%}   90% interval [{share['low']:.1%}, {share['high']:.1%}]"


def row(title: str, text: str) -> str:
    return f"{title + ':':34}{text}"
