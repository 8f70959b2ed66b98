"""Text and JSON files that users give to a benchmark."""

from pathlib import Path
from typing import TypeVar

import msgspec

from helios_serve.errors import InvalidRequestError

Content = TypeVar("Content")


def read_json(
    path: Path, kind: type[Content], *, param: str, flag: str = "", expected: str = "file"
) -> Content:
    """Read a JSON file of the type `kind`.

    `flag` is the flag that named the file, and `expected` what it should be, for messages. Raises
    InvalidRequestError with `param` for a file that cannot be read or has another type.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except OSError as error:
        given = f"{flag} {path}".strip()
        raise InvalidRequestError(
            f"got {given}, expected a readable {expected}: {error.strerror}", param=param
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"{path}: {error}", param=param) from error


def text_of(path: Path, param: str = "dataset_path") -> str:
    """Read a text file in UTF-8. Raises InvalidRequestError with `param`."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidRequestError(
            f"got {path}, expected a readable text file: {reason}", param=param
        ) from error
