"""nano's own bench: HeliosBench's shape with captions that nano was trained to show.

    python benchmarks/micro/nano_bench.py prompts build/nano_bench.csv
    helios-serve bench heliosbench generate --prompts build/nano_bench.csv \\
      --videos build/bench/nano --offline nano
    python benchmarks/micro/nano_bench.py score build/nano_bench.csv build/bench/nano \\
      --output scores.json
    python benchmarks/micro/nano_bench.py plot scores.json --output plot.png

There are 240 held-out captions, 60 for each of four lengths. Detectors tell what the first and last
15 % of each video show; drift, seams and repetition are those of `helios-serve bench heliosbench`.
"""

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from helios_serve.benchmarks.quality.cases import HEADER, BenchVideo, find_videos, read_cases
from helios_serve.benchmarks.quality.continuity import continuity_of, thumbnail
from helios_serve.benchmarks.quality.drift import WINDOW, Look, drift_of
from helios_serve.benchmarks.quality.frames import frame_rate, frames_of
from helios_serve.benchmarks.quality.optical_flow import gray_of
from helios_serve.model_executor.training.probe import score
from helios_serve.model_executor.training.world.captions import read_caption, write_caption
from helios_serve.model_executor.training.world.detectors import detect
from helios_serve.model_executor.training.world.scene import Grammar, draw_scene

DURATIONS = (120, 240, 720, 1440)
VIDEOS_OF_EACH = 60
SEED = 5
"""Differs from the seeds of trainings and gates."""
SHOWN = ("background", "colour", "shape", "motion", "one_object")


class Scored(NamedTuple):
    """What a video shows at its start and at its end, and its drift and continuity."""

    id: int
    duration: int
    first: dict[str, float]
    last: dict[str, float]
    measures: dict[str, float | None]


def main() -> int:
    arguments = parse_arguments()
    if arguments.action == "prompts":
        write_prompts(arguments.prompts)
    elif arguments.action == "score":
        videos = find_videos(arguments.videos, read_cases(arguments.prompts))
        content = content_of([score_video(video) for video in videos])
        arguments.output.write_text(json.dumps(content, indent=1) + "\n")
        print(table_of(content["averages"]))
    else:
        plot(json.loads(arguments.scores.read_text()), arguments.output)
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="nano's own bench")
    actions = parser.add_subparsers(dest="action", required=True)
    writing = actions.add_parser("prompts", help="write the captions")
    scoring = actions.add_parser("score", help="measure the videos of a folder")
    for each in (writing, scoring):
        each.add_argument("prompts", type=Path, metavar="FILE.csv")
    scoring.add_argument("videos", type=Path, metavar="FOLDER")
    scoring.add_argument("--output", type=Path, required=True, metavar="FILE.json")
    plotting = actions.add_parser("plot", help="draw scores")
    plotting.add_argument("scores", type=Path, metavar="FILE.json")
    plotting.add_argument("--output", type=Path, required=True, metavar="FILE.png")
    return parser.parse_args()


def write_prompts(path: Path) -> None:
    """Write the captions, the lengths in turn, so that the first ones have all of them."""
    rng, rows = np.random.default_rng(SEED), []
    for number in range(VIDEOS_OF_EACH * len(DURATIONS)):
        scene = draw_scene(rng, Grammar(), held_out=True, things=1)
        rows.append((number, write_caption(rng, scene), DURATIONS[number % len(DURATIONS)]))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([HEADER, *rows])


def score_video(video: BenchVideo) -> Scored:
    frames = np.stack(list(frames_of(video.path)))
    count = max(1, int(WINDOW * len(frames)))
    scene = read_caption(video.case.prompt)
    first, last = (score([scene], [detect(part)]) for part in (frames[:count], frames[-count:]))
    grays = [gray_of(frame) for frame in frames]
    looks = [Look.of(*pair) for pair in zip(frames, grays, strict=True)]
    continuity = continuity_of(
        steps_of(frames), [thumbnail(gray) for gray in grays], frame_rate(video.path)
    )
    measures = drift_of(looks)._asdict() | continuity._asdict()
    return Scored(video.case.id, video.case.duration, first, last, measures)


def steps_of(frames: NDArray[np.uint8]) -> list[float]:
    """Return the mean absolute differences of neighbouring frames."""
    pairs = zip(frames, frames[1:], strict=False)
    return [float(np.abs(b.astype(np.int16) - a).mean()) for a, b in pairs]


def content_of(videos: Sequence[Scored]) -> dict[str, Any]:
    """Return the scores and their averages by duration."""
    averages = {}
    for duration in sorted({video.duration for video in videos}):
        own = [video for video in videos if video.duration == duration]
        averages[str(duration)] = {"videos": len(own)} | {
            f"{part}_{name}": mean([getattr(video, part)[name] for video in own])
            for part in ("first", "last")
            for name in SHOWN
        }
        averages[str(duration)] |= {
            name: mean([video.measures[name] for video in own]) for name in own[0].measures
        }
    return {"averages": averages, "videos": [video._asdict() for video in videos]}


def mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(float(np.mean(known)), 4) if known else None


def table_of(averages: dict[str, dict[str, Any]]) -> str:
    """Return the averages as a Markdown table, a column per duration."""
    lines = [f"| frames | {' | '.join(averages)} |", "|---" * (len(averages) + 1) + "|"]
    for name in next(iter(averages.values()), {}):
        cells = (own[name] for own in averages.values())
        lines.append(f"| {name} | {' | '.join('-' if x is None else f'{x:.3g}' for x in cells)} |")
    return "\n".join(lines)


def plot(content: dict[str, Any], path: Path) -> None:
    """Draw what the start and the end of videos show, and how their colour drifts, by length."""
    from matplotlib.figure import Figure

    averages = content["averages"]
    durations = list(averages)
    figure = Figure(figsize=(9, 3.4), layout="constrained", dpi=100)
    shown, drifts = figure.subplots(1, 2)
    for name in SHOWN:
        (line,) = shown.plot(durations, [own[f"first_{name}"] for own in averages.values()], "o--")
        ends = [own[f"last_{name}"] for own in averages.values()]
        shown.plot(durations, ends, "o-", color=line.get_color(), label=name.replace("_", " "))
    shown.set(ylim=(0, 1.05), xlabel="frames", ylabel="share of videos")
    shown.set_title("shown as described: first 15 % dashed, last 15 % solid", fontsize=9)
    shown.legend(fontsize=8, loc="lower left")
    by_duration = {
        duration: [
            v["measures"]["drift_colour"]
            for v in content["videos"]
            if str(v["duration"]) == duration
        ]
        for duration in averages
    }
    drifts.boxplot(list(by_duration.values()), tick_labels=list(by_duration))
    drifts.set(xlabel="frames", ylabel="delta E")
    drifts.set_title("drift of the mean colour, first to last 15 %", fontsize=9)
    figure.savefig(path)


if __name__ == "__main__":
    sys.exit(main())
