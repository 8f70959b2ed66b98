"""Prompts of a load: random words, a file, or HeliosBench's CSV."""

from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from helios_serve.benchmarks.load.json_file import text_of
from helios_serve.benchmarks.load.trace_file import read_lines
from helios_serve.benchmarks.quality.cases import read_cases
from helios_serve.errors import InvalidRequestError
from helios_serve.options.benchmarks import Dataset

SUBJECTS = ("a dog", "a tram", "an old sailor", "a paper boat", "two foxes", "a street musician")
ACTIONS = ("runs", "drifts", "turns slowly", "waits", "climbs", "dances")
PLACES = ("over a green hill", "in heavy rain", "through a market", "by the sea", "at night")
LIGHTS = ("golden hour", "overcast", "neon light", "soft morning light", "backlit")
PARTS: tuple[tuple[str, ...], ...] = (SUBJECTS, ACTIONS, PLACES, LIGHTS)

PromptFields = dict[str, Any]
"""Fields of a session that come with a prompt: `prompt`, and for some `num_frames` and others."""


def prompts_of(
    dataset: Dataset, path: str | None, random: np.random.Generator
) -> Iterator[PromptFields]:
    """Yield prompts without end; a file's are repeated.

    Raises InvalidRequestError for a missing or invalid file.
    """
    if dataset == "random":
        return random_prompts(random)
    if path is None:
        raise InvalidRequestError(
            f"missing --dataset-path, expected a file for --dataset-name {dataset}",
            param="dataset_path",
        )
    found = heliosbench(Path(path)) if dataset == "heliosbench" else custom(Path(path))
    if not found:
        raise InvalidRequestError(
            f"got {path} without prompts, expected at least one", param="dataset_path"
        )
    return cycle(found)


def random_prompts(random: np.random.Generator) -> Iterator[PromptFields]:
    """Yield sentences of random words. Each has a number, so that no server can cache it."""
    while True:
        words = [part[int(random.integers(len(part)))] for part in PARTS]
        number = random.integers(1_000_000)
        yield {"prompt": f"{words[0]} {words[1]} {words[2]}, {words[3]}, take {number}"}


def custom(path: Path) -> list[PromptFields]:
    """Read JSON lines with `prompt` and other fields of a trace (.jsonl), or a prompt a line."""
    if path.suffix == ".jsonl":
        lines = list(read_lines(path))
        for where, fields in lines:
            if not isinstance(fields.get("prompt"), str):
                raise InvalidRequestError(
                    f"{where}: missing prompt, expected text", param="dataset_path"
                )
        return [fields for _, fields in lines]
    texts = map(str.strip, text_of(path).splitlines())
    return [{"prompt": text} for text in texts if text]


def heliosbench(path: Path) -> list[PromptFields]:
    """Read HeliosBench's CSV. A session asks for the frames that the official pipeline returns."""
    return [
        {"prompt": case.prompt, "num_frames": case.num_frames, "heliosbench_id": str(case.id)}
        for case in read_cases(path, param="dataset_path")
    ]
