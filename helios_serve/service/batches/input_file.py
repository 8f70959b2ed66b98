"""The lines of a batch's input file."""

from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from helios_serve.store.batches import LineError

URL = "/v1/videos"
MAX_LINES = 50_000
MAX_ERRORS = 100
"""Errors of one file that are told."""


class BatchLine(msgspec.Struct, frozen=True, kw_only=True):
    """A request: the body is that of a new video."""

    custom_id: str
    method: str
    url: str
    body: dict[str, Any]


class LineSpan(NamedTuple):
    """Where a line lies in its file, in bytes, and which one it is, from 1 on."""

    number: int
    start: int
    length: int


class CheckedInput(NamedTuple):
    """The lines of a file, or what is wrong with it."""

    places: list[LineSpan]
    errors: list[LineError]


def check_input(path: Path) -> CheckedInput:
    """Look at every line without keeping it; empty ones do not count."""
    places: list[LineSpan] = []
    errors: list[LineError] = []
    seen: dict[str, int] = {}
    with path.open("rb") as file:
        start = 0
        for number, text in enumerate(file, 1):
            if text.strip():
                places.append(LineSpan(number, start, len(text)))
                errors += line_errors(number, text, seen)
            start += len(text)
            if len(places) > MAX_LINES:
                errors.append(
                    LineError(
                        "too_many_lines", f"got more than {MAX_LINES} requests, expected at most so"
                    )
                )
            if len(errors) >= MAX_ERRORS or len(places) > MAX_LINES:
                break
    if not places:
        errors.append(
            LineError("empty_file", "got a file without a request, expected at least one")
        )
    return CheckedInput(places, errors)


def line_errors(number: int, text: bytes, seen: dict[str, int]) -> list[LineError]:
    """What is wrong with a line; `seen` has the custom ids of those before it."""
    try:
        line = msgspec.json.decode(text, type=BatchLine)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return [LineError("invalid_json_line", f"got a line that is no request: {error}", number)]
    if (line.method, line.url) != ("POST", URL):
        message = f"got {line.method} {line.url}, expected POST {URL}"
        return [LineError("invalid_url", message, number, "url")]
    if line.custom_id in seen:
        message = f"got custom_id {line.custom_id!r} as in line {seen[line.custom_id]}"
        return [LineError("duplicate_custom_id", message, number, "custom_id")]
    seen[line.custom_id] = number
    return []


def read_line(path: Path, place: LineSpan) -> BatchLine:
    """A line that was found to be good."""
    with path.open("rb") as file:
        file.seek(place.start)
        return msgspec.json.decode(file.read(place.length), type=BatchLine)
