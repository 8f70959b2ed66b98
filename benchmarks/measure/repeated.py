"""Several runs of one load: means of the runs' values, with intervals over the runs.

A percentile is computed for each run. Values of different runs are never pooled, because those of
one run are correlated.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from helios_serve.benchmarks.measure.printed import WIDTH, bounded, row
from helios_serve.benchmarks.measure.result import SCHEMA
from helios_serve.benchmarks.measure.statistics import Estimate, runs_interval
from helios_serve.benchmarks.measure.summary import METRICS

RATES = ("request_throughput", "request_goodput", "slo_attainment_rate")
DESCRIPTION = (
    "date", "endpoint_type", "backend", "label", "model_id", "request_rate", "burstiness",
    "max_concurrency",
)  # fmt: skip
"""Keys of a result that are the same in all runs."""


def over_runs(results: Sequence[dict[str, Any]]) -> dict[str, Estimate]:
    """Return the mean of each value that all runs have, with Student's bounds."""
    names = [*RATES, *value_keys(results[0])]
    found = {
        name: runs_interval([result[name] for result in results])
        for name in names
        if all(isinstance(result.get(name), int | float) for result in results)
    }
    rates = [result["helios"]["frames_per_second"] for result in results]
    if None not in rates:
        found["frames_per_second"] = runs_interval(rates)
    return found


def value_keys(result: dict[str, Any]) -> list[str]:
    """Return the flat keys of metrics, such as p99_ttfc_ms."""
    endings = {f"{name}_ms" if own.unit == "ms" else name for name, own in METRICS.items()}
    return [key for key in result if key.partition("_")[2] in endings]


def repeated_result(results: Sequence[dict[str, Any]], files: Sequence[str]) -> dict[str, Any]:
    """Return the result of several runs: vLLM's keys are means over the runs.

    `files` are the names of the runs' own results.
    """
    blocks = [result["helios"] for result in results]
    values = over_runs(results)
    runs = [
        {
            "file": name,
            "seed": block["workload"]["seed"],
            "valid": block["valid"],
            "invalid_because": block["invalid_because"],
        }
        for name, block in zip(files, blocks, strict=True)
    ]
    top = {key: results[0][key] for key in DESCRIPTION}
    sums = {key: sum(result[key] for result in results) for key in ("completed", "failed")}
    means = {key: estimate.value for key, estimate in values.items()}
    return (
        top
        | sums
        | means
        | {
            "helios": {
                "schema": SCHEMA,
                "valid": all(block["valid"] for block in blocks),
                "invalid_because": [each for block in blocks for each in block["invalid_because"]],
                "timing": blocks[0]["timing"],
                "poll_interval": blocks[0]["poll_interval"],
                "command": blocks[0]["command"],
                "runs": runs,
                "over_runs": msgspec.to_builtins(values),
            }
        }
    )


def repeated_lines(result: dict[str, Any], names: Sequence[str]) -> Iterator[str]:
    """Yield the text of a result of several runs. `names` are the metrics that are shown."""
    block = result["helios"]
    yield f" {len(block['runs'])} runs, with intervals over the runs ".center(WIDTH, "=")
    for key, at in block["over_runs"].items():
        statistic, _, ending = key.partition("_")
        if statistic in ("std", "median"):  # p50 is the median
            continue
        if key in (*RATES, "frames_per_second") or ending.removesuffix("_ms") in names:
            unit = "ms" if ending.endswith("_ms") else "ratio"
            yield row(key, bounded(at["value"], at["low"], at["high"], unit))
    yield "=" * WIDTH
    if not block["valid"]:
        yield "INVALID, do not use these numbers:"
        yield from (f"  - {reason}" for reason in block["invalid_because"])
