"""Trace files: one session a line, as JSON. The same file can be replayed.

`timestamp` is in milliseconds, as in Mooncake's traces. Unknown keys are kept.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from helios_serve.benchmarks.load.request import KNOWN_KEYS, SessionRequest
from helios_serve.errors import InvalidRequestError


def read_trace(path: Path) -> list[SessionRequest]:
    """Read a trace, ordered by time.

    Raises InvalidRequestError, which names the line that is not valid.
    """
    requests = [parse_line(fields, where) for where, fields in read_lines(path)]
    if not requests:
        raise InvalidRequestError(
            f"got empty trace {path}, expected one session a line", param="dataset_path"
        )
    return sorted(requests, key=lambda request: request.timestamp)


def read_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the JSON object of each line that is not empty, with its place for error messages.

    Raises InvalidRequestError for an unreadable file, and for a line that is not an object.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise InvalidRequestError(
            f"got {path}, expected a readable file: {error.strerror}", param="dataset_path"
        ) from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            yield where, msgspec.json.decode(line, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidRequestError(
                f"{where}: got {line[:60].decode(errors='replace')!r}, expected a JSON object: "
                f"{error}",
                param="dataset_path",
            ) from error


def parse_line(fields: dict[str, Any], where: str) -> SessionRequest:
    """Convert the fields of a line. Raises InvalidRequestError, which names `where`."""
    known = {key: value for key, value in fields.items() if key in KNOWN_KEYS}
    extra = {key: value for key, value in fields.items() if key not in KNOWN_KEYS}
    try:
        request = msgspec.convert(known | {"extra": extra}, SessionRequest)
    except msgspec.ValidationError as error:
        raise InvalidRequestError(f"{where}: {error}", param="dataset_path") from error
    if request.timestamp < 0 or request.num_frames < 1 or request.fps < 1:
        raise InvalidRequestError(
            f"{where}: got timestamp {request.timestamp:g}, num_frames {request.num_frames} and "
            f"fps {request.fps}, expected at least 0, 1 and 1",
            param="dataset_path",
        )
    return request


def encode_trace(requests: Iterable[SessionRequest]) -> bytes:
    """Encode sessions as JSON lines, with the unknown keys of the lines that they came from."""
    return b"".join(encode_line(request) + b"\n" for request in requests)


def encode_line(request: SessionRequest) -> bytes:
    fields = msgspec.to_builtins(request)
    extra = fields.pop("extra", {})
    return msgspec.json.encode({"timestamp": request.timestamp} | fields | extra)
