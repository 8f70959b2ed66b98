"""The prompts of HeliosBench, and the file names of their videos."""

import csv
import re
from pathlib import Path
from typing import NamedTuple

from helios_serve.benchmarks.load.json_file import text_of
from helios_serve.errors import InvalidRequestError
from helios_serve.model_config import num_chunks

HEADER = ("id", "prompt", "duration")
SHORT_FRAMES = 81
"""Frames of a video of the short track: the first ones of the long track's."""
VIDEO_NAME = re.compile(r"(\d+)_(\d+)_ori(\d+)\.mp4")


class BenchCase(NamedTuple):
    """A line of the CSV: `duration` is the nominal number of frames."""

    id: int
    prompt: str
    duration: int

    @property
    def num_frames(self) -> int:
        """Frames that the official pipeline returns: (33k - 1) // 4 * 4 + 1 for k chunks.

        These are 129, 261, 725 and 1449 for the durations 120, 240, 720 and 1440. With any other
        number the windows of the drift metrics would be shifted.
        """
        return (33 * num_chunks(self.duration) - 1) // 4 * 4 + 1

    def video_name(self, frames: int) -> str:
        """Return the official name of a video that has `frames` frames."""
        return f"{self.id}_{self.duration}_ori{frames}.mp4"


class BenchVideo(NamedTuple):
    """A generated video: `frames` is the number that its name states."""

    case: BenchCase
    path: Path
    frames: int


def read_cases(path: Path, *, param: str = "prompts") -> list[BenchCase]:
    """Read HeliosBench's CSV with the columns id, prompt and duration (in frames).

    Raises InvalidRequestError with the line that is invalid.
    """
    rows = csv.DictReader(text_of(path, param).splitlines())
    if tuple(rows.fieldnames or ()) != HEADER:
        raise InvalidRequestError(
            f"{path}, line 1: got columns {rows.fieldnames}, expected {','.join(HEADER)}",
            param=param,
        )
    found: dict[int, BenchCase] = {}
    for number, row in enumerate(rows, start=2):
        case = case_of(row, f"{path}, line {number}", param)
        if case.id in found:
            raise InvalidRequestError(
                f"{path}, line {number}: got id {case.id} again, expected unique ids", param=param
            )
        found[case.id] = case
    return list(found.values())


def case_of(row: dict[str, str], where: str, param: str) -> BenchCase:
    if not row["prompt"]:
        raise InvalidRequestError(f"{where}: got no prompt, expected text", param=param)
    numbers = []
    for name, expected in (("id", "a whole number"), ("duration", "a number of frames")):
        try:
            numbers.append(int(row[name]))
            if name == "duration":
                num_chunks(numbers[-1])
        except (TypeError, ValueError) as error:
            raise InvalidRequestError(
                f"{where}: got {name} {row[name]!r}, expected {expected}", param=param
            ) from error
    return BenchCase(numbers[0], row["prompt"], numbers[1])


def find_videos(folder: Path, cases: list[BenchCase]) -> list[BenchVideo]:
    """Return the videos of a folder that belong to a case, by id. Raises InvalidRequestError."""
    by_id = {case.id: case for case in cases}
    found: dict[int, BenchVideo] = {}
    for path in sorted(folder.glob("*_*_ori*.mp4")):
        match = VIDEO_NAME.fullmatch(path.name)
        case = by_id.get(int(match[1])) if match else None
        if match is None or case is None:
            continue
        if case.id in found:
            raise InvalidRequestError(
                f"{folder}: got {found[case.id].path.name} and {path.name}, expected one video of "
                f"id {case.id}",
                param="videos",
            )
        found[case.id] = BenchVideo(case, path, int(match[3]))
    return [found[each] for each in sorted(found)]
