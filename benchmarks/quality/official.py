"""HeliosBench's metrics, ratings and totals, as its scripts compute them (PKU-YuanGroup/Helios)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from helios_serve.benchmarks.load.json_file import read_json
from helios_serve.errors import InvalidRequestError

Track = Literal["long", "short"]

RATING_SCALE = 10
MERGED = "merged_results.json"
ALL_MERGED = "all_models_merged.json"
FPS_PER_POINT = 3.2
"""Frames a second for each point of the throughput score, which no total contains."""


def falling(first: float, count: int = 9, step: float = 0.05) -> tuple[float, ...]:
    return tuple(round(first - step * index, 4) for index in range(count))


class BenchMetric(NamedTuple):
    """A metric: the script that computes it, and what it takes to get each rating.

    `thresholds` lead to the ratings 10, 9, ... 2 and else 1. Smaller values are better for drift.
    """

    script: str
    weight_short: float | None
    weight_long: float
    thresholds: tuple[float, ...]

    @property
    def is_drift(self) -> bool:
        return self.weight_short is None

    def weight(self, track: Track) -> float | None:
        return self.weight_long if track == "long" else self.weight_short

    def rating(self, value: float, track: Track, name: str) -> int:
        thresholds = LONG_THRESHOLDS.get(name, self.thresholds)
        if track == "short":
            thresholds = self.thresholds
        for index, threshold in enumerate(thresholds):
            if value <= threshold if self.is_drift else value >= threshold:
                return RATING_SCALE - index
        return 1


RISING = tuple(round(0.01 * index, 2) for index in range(1, 10))
NATURAL = (0.65, 0.60, 0.55, 0.50, 0.45, 0.40, 0.30, 0.25, 0.20)
METRICS: Mapping[str, BenchMetric] = {
    "aesthetic": BenchMetric("0_get_aesthetic.py", 0.10, 0.03, falling(0.70)),
    "motion_amplitude": BenchMetric("1_get_motion_amplitude.py", 0.10, 0.03, falling(0.45)),
    "motion_smoothness": BenchMetric(
        "2_get_motion_smoothness.py",
        0.10,
        0.03,
        falling(0.99, step=0.01),
    ),
    "semantic": BenchMetric("3_get_semantic.py", 0.35, 0.255, falling(0.30, step=0.01)),
    "naturalness": BenchMetric("4_get_naturalness.py", 0.35, 0.255, NATURAL),
    "drifting_aesthetic": BenchMetric("5_get_drifting_aesthetic.py", None, 0.099, RISING),
    "drifting_motion_smoothness": BenchMetric(
        "6_get_drifting_motion_smoothness.py",
        None,
        0.099,
        RISING,
    ),
    "drifting_semantic": BenchMetric("7_get_drifting_semantic.py", None, 0.099, RISING),
    "drifting_naturalness": BenchMetric(
        "8_get_drifting_naturalness.py",
        None,
        0.099,
        tuple(round(0.04 + 0.02 * index, 2) for index in range(1, 10)),
    ),
}
LONG_THRESHOLDS = {"aesthetic": (*falling(0.70, 7), 0.45, 0.40)}
"""The long track's script ends with .40, .45, .40: ratings 3 and 2 cannot be reached."""


def results_file(metric: str) -> str:
    return f"{metric}_results.json"


def motion_results(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the results file of motion_amplitude: rows with id, video_name and motion_fb."""
    return {
        "metric": "motion_fb",
        "average_score": sum(row["motion_fb"] for row in rows) / len(rows),
        "num_videos": len(rows),
        "per_video_results": sorted(rows, key=lambda row: int(row["id"])),
    }


def throughput_score(frames_per_second: float) -> int:
    """Return HeliosBench's throughput score: ceil(FPS / 3.2), at least 1 and at most 10."""
    points = -int(-frames_per_second // FPS_PER_POINT)
    return min(max(points, 1), RATING_SCALE)


def merge_model(folder: Path, track: Track) -> dict[str, Any]:
    """Merge the results files of a model, in the format of `9_merge_all_scores.py`.

    The official script adds up the metrics that are there. Here the total is null unless all
    metrics of the track are there, and `missing_metrics` names the others. As in the script, a
    score that is exactly 0 (not a drift) counts as missing. Raises InvalidRequestError for a
    damaged file.
    """
    summary: dict[str, Any] = {"non_drifting": {}, "drifting": {}}
    total, missing = 0.0, []
    for name, metric in METRICS.items():
        weight = metric.weight(track)
        if weight is None:
            continue
        entry = summary_of(folder / results_file(name), name, track)
        if entry is not None:
            summary["drifting" if metric.is_drift else "non_drifting"][name] = entry
        if entry is None or entry["rating"] is None:
            missing.append(name)
        else:
            total += entry["rating"] * weight
    summary["total_weighted_rating"] = None if missing else round(total, 4)
    summary["missing_metrics"] = missing
    return {"rating_scale": RATING_SCALE, "summary": summary, "per_video": {}}


def summary_of(path: Path, name: str, track: Track) -> dict[str, Any] | None:
    if not path.exists():
        return None
    found = read_json(path, dict[str, Any], param="results", expected="results file")
    score = found.get("average_score") or found.get("average_drift_score")
    if score is not None and not isinstance(score, int | float):
        raise InvalidRequestError(
            f"{path}: got average {score!r}, expected a number", param="results"
        )
    normalized = None if score is None else max(0.0, min(1.0, score))
    return {
        "name": name.replace("_", " ").title(),
        "raw_score": score,
        "normalized_score": normalized,
        "rating": None if normalized is None else METRICS[name].rating(normalized, track, name),
        "num_videos": found.get("num_videos", 0),
    }


def merge_models(models: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Merge merged results by model, in the format of `10_merge_all_results.py`."""
    ratings = {
        model: {
            name: entry["rating"]
            for part in ("non_drifting", "drifting")
            for name, entry in merged["summary"][part].items()
        }
        | {"total_weighted_rating": merged["summary"]["total_weighted_rating"]}
        for model, merged in models.items()
    }
    names = sorted({name for each in ratings.values() for name in each})
    names.remove("total_weighted_rating")
    return {
        "num_models": len(ratings),
        "score_type": "rating",
        "metrics": [*names, "total_weighted_rating"],
        "models": ratings,
        "rating_scale": RATING_SCALE,
    }


def as_json(content: dict[str, Any]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n"
