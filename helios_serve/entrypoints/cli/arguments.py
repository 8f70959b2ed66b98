"""Parsers for the values of command-line flags."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from helios_serve.options.sampling import PromptSwitch
from helios_serve.options.server import CELL_NAME
from helios_serve.size import parse_size

T = TypeVar("T")

LOG_LEVELS = ("debug", "info", "warning", "error", "critical")


def add_data_dir(parser: Any, what: str) -> None:
    """Add `--data-dir`, the folder by which commands find a server. `what` is its help text."""
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=Path("helios-data"),
        metavar="FOLDER",
        help=f"{what} (default: helios-data)",
    )


def add_log_flags(parser: Any) -> None:
    parser.add_argument(
        "--log-level",
        choices=LOG_LEVELS,
        default="info",
        help="write log lines of this level and above to standard error (default: info)",
    )


def value_parser(expected: str, parse: Callable[[str], T]) -> Callable[[str], T]:
    """Wrap `parse` so that a ValueError becomes "got X, expected `expected`"."""

    def checked(text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"got {text!r}, expected {expected}") from error

    return checked


def _sizes(text: str) -> tuple[str, ...]:
    return tuple("{}x{}".format(*parse_size(part)) for part in text.split(","))


def _steps(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _bounds(text: str) -> tuple[float, float]:
    low, high = (float(part) for part in text.split(","))
    return low, high


def api_key(text: str) -> str:
    """Parse an API key. Messages do not contain it."""
    if not text.strip() or text != text.strip() or not text.isascii():
        raise argparse.ArgumentTypeError("expected ASCII characters without spaces around them")
    return text


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= MAX_PORT:
        raise ValueError("out of range")
    return port


def _names(text: str) -> tuple[str, ...]:
    """Parse comma-separated names or a JSON list of names. vLLM's flags accept both."""
    if text.startswith("["):
        return msgspec.json.decode(text, type=tuple[str, ...])
    names = tuple(part.strip() for part in text.split(","))
    if not all(names):
        raise ValueError("empty name")
    return names


def _switch(text: str) -> PromptSwitch:
    chunk, separator, prompt = text.partition(":")
    if not separator or not prompt.strip():
        raise ValueError("missing prompt")
    return PromptSwitch(int(chunk), prompt)


def _lora_module(text: str) -> tuple[str, str]:
    name, separator, path = text.partition("=")
    if not (name and separator and Path(path).exists()):
        raise ValueError("adapter not found")
    return name, str(Path(path).resolve())


def _cell_name(text: str) -> str:
    if not CELL_NAME.fullmatch(text):
        raise ValueError("invalid name")
    return text


def _chunk_count(text: str) -> int:
    count = int(text)
    if not 4 <= count <= 100_000:
        raise ValueError("out of range")
    return count


def _lease_seconds(text: str) -> float:
    lease = float(text)
    if not 1 <= lease <= 600:
        raise ValueError("out of range")
    return lease


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds <= 3600:
        raise ValueError("out of range")
    return seconds


MAX_PORT = 65535
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600, "w": 7 * 24 * 3600}
BYTES = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def _duration(text: str) -> float:
    seconds = float(text[:-1]) * UNITS.get(text[-1:], 0)
    if not 0 < seconds < math.inf:
        raise ValueError("out of range")
    return seconds


def _bytes(text: str) -> int:
    size = float(text[:-2]) * BYTES.get(text[-2:].upper(), 0)
    if not 0 < size < math.inf:
        raise ValueError("out of range")
    return int(size)


integer = value_parser("an integer", int)
number = value_parser("a number", float)
port = value_parser(f"an integer from 0 (a free port) to {MAX_PORT}", _port)
size = value_parser("WIDTHxHEIGHT in pixels, such as 640x384", parse_size)
sizes = value_parser("comma-separated WIDTHxHEIGHT in pixels, such as 640x384,384x640", _sizes)
steps = value_parser("comma-separated integers, such as 2,2,2", _steps)
names = value_parser("comma-separated names, such as a.example.com,*.example.org", _names)
bounds = value_parser("MIN,MAX, such as 0.111,0.135", _bounds)
switch = value_parser("CHUNK:TEXT, such as 2:the sun sets", _switch)
lora_module = value_parser("NAME=PATH of an existing file or folder", _lora_module)
chunk_count = value_parser("an integer from 4 to 100000", _chunk_count)
cell_name = value_parser(
    "1 to 31 lower-case letters, digits or dashes, without a dash at an end", _cell_name
)
lease_seconds = value_parser("a number of seconds from 1 to 600", _lease_seconds)
seconds = value_parser("a number of seconds greater than 0 and at most 3600", _seconds)
duration = value_parser("a number with a unit (s, m, h, d or w), such as 7d", _duration)
byte_count = value_parser("a number with a unit (KB, MB, GB or TB), such as 500GB", _bytes)
