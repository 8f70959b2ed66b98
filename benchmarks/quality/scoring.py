"""Scores a folder of videos with the measures that need no weights of other models."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from helios_serve.benchmarks.load.json_file import read_json
from helios_serve.benchmarks.measure.result_files import write
from helios_serve.benchmarks.quality.cases import BenchVideo
from helios_serve.benchmarks.quality.continuity import continuity_of, thumbnail
from helios_serve.benchmarks.quality.drift import Look, drift_of
from helios_serve.benchmarks.quality.frames import frame_rate, frames_of, official_frames
from helios_serve.benchmarks.quality.official import as_json, motion_results, results_file
from helios_serve.benchmarks.quality.optical_flow import MotionMeter, gray_of, motion_amplitude

OWN_RESULTS = "helios_results.json"
OWN_MEASURES = (
    "mean_flow_magnitude", "flow_smoothness", "flicker", "chunk_seam", "repetition", "drift_luma",
    "drift_saturation", "drift_colour", "drift_sharpness",
)  # fmt: skip
"""Measures of our own. HeliosBench has none of them, and no rating is made of them."""


class VideoScore(msgspec.Struct, frozen=True, kw_only=True):
    """The measures of a video. `digest` is the SHA-256 of its file."""

    id: int
    video_name: str
    digest: str
    duration: int
    frames: int
    motion_fb: float
    measures: dict[str, float | None]


class FolderScores(msgspec.Struct, frozen=True, kw_only=True):
    """The scores of a folder of videos, as `helios_results.json` has them."""

    version: int = 1
    random_weights: bool = False
    videos: tuple[VideoScore, ...] = ()


def score_folder(
    videos: Sequence[BenchVideo],
    results: Path,
    *,
    random_weights: bool,
    on_score: Callable[[VideoScore], None],
) -> FolderScores:
    """Score the videos of a folder, and write `helios_results.json` and the official file.

    Scores of files that did not change are kept, and each new one is written at once, so that an
    interrupted run continues. Raises InvalidRequestError for a file that is not a video, and
    StorageError.
    """
    results.mkdir(parents=True, exist_ok=True)
    known = known_scores(results / OWN_RESULTS)
    scores: list[VideoScore] = []
    found = FolderScores(random_weights=random_weights)
    for video in videos:
        digest = hashlib.sha256(video.path.read_bytes()).hexdigest()
        kept = known.get((video.path.name, digest))
        score = kept or score_video(video, digest)
        scores.append(score)
        found = FolderScores(random_weights=random_weights, videos=tuple(scores))
        if kept is None or len(scores) == len(videos):
            write(results / OWN_RESULTS, as_json(content_of(found)))
        on_score(score)
    rows = [
        {"id": score.id, "video_name": score.video_name, "motion_fb": score.motion_fb}
        for score in scores
    ]
    path = results / results_file("motion_amplitude")
    if rows and not random_weights:
        write(path, as_json(motion_results(rows)))
    return found


def known_scores(path: Path) -> dict[tuple[str, str], VideoScore]:
    """Return scores of an earlier run by file name and digest. Raises InvalidRequestError."""
    if not path.exists():
        return {}
    found = read_json(path, FolderScores, param="results", expected="file of scores")
    return {(score.video_name, score.digest): score for score in found.videos}


def score_video(video: BenchVideo, digest: str) -> VideoScore:
    """Measure a video. Raises InvalidRequestError if it cannot be decoded."""
    measured = measure_video(video.path)
    return VideoScore(
        id=video.case.id,
        video_name=video.path.name,
        digest=digest,
        duration=video.case.duration,
        frames=measured.frames,
        motion_fb=motion_amplitude(official_frames(video.path)),
        measures=measured.measures,
    )


class OwnMeasures(NamedTuple):
    """The number of frames, and our own measures by name."""

    frames: int
    measures: dict[str, float | None]


def measure_video(path: Path) -> OwnMeasures:
    """Take our own measures of a video, at its own size. Raises InvalidRequestError."""
    motion, looks, thumbnails, steps = MotionMeter(), [], [], []
    before = None
    for frame in frames_of(path):
        gray = gray_of(frame)
        motion.add(gray)
        looks.append(Look.of(frame, gray))
        thumbnails.append(thumbnail(gray))
        if before is not None:
            steps.append(float(np.abs(frame.astype(np.int16) - before).mean()))
        before = frame
    continuity = continuity_of(steps, thumbnails, frame_rate(path))
    moved = motion.motion()
    measures: dict[str, float | None] = dict.fromkeys(OWN_MEASURES)
    measures |= {} if moved is None else moved._asdict()
    measures |= continuity._asdict() | drift_of(looks)._asdict()
    return OwnMeasures(len(looks), measures)


def content_of(scores: FolderScores) -> dict[str, Any]:
    """Return the content of the file: the scores, and their averages by length."""
    content: dict[str, Any] = msgspec.to_builtins(scores)
    content["label"] = "machinery only: random weights" if scores.random_weights else "measured"
    content["averages"] = averages_of(scores.videos)
    return content


def averages_of(videos: Sequence[VideoScore]) -> dict[str, dict[str, float | None]]:
    """Return the mean of each measure for each duration, and for all videos."""
    groups = {str(key): key for key in sorted({video.duration for video in videos})}
    found = {}
    for name, duration in {**groups, "all": None}.items():
        own = [video for video in videos if duration in (None, video.duration)]
        averages: dict[str, float | None] = {"videos": float(len(own))}
        for measure in OWN_MEASURES:
            values = [each for video in own if (each := video.measures[measure]) is not None]
            averages[measure] = float(np.mean(values)) if values else None
        found[name] = averages
    return found
