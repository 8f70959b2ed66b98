"""Limits of reference files, and the errors that name what was refused."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from av.error import FFmpegError
from PIL import Image, UnidentifiedImageError

from helios_serve.errors import HeliosError, InvalidRequestError

MAX_SIDE = 16384
"""Maximum width and height of a reference, in pixels."""
MAX_PIXELS = 64_000_000
"""Maximum pixels of a frame of a reference."""


@contextmanager
def refusing(path: Path, expected: str, param: str) -> Iterator[None]:
    """Turn any exception of a decoder into an InvalidRequestError that names the file.

    Decoders raise whatever their parsers stumble on (KeyError, struct.error, SyntaxError and more),
    and which file is at fault is known only here.
    """
    try:
        yield
    except InvalidRequestError:
        raise
    except MemoryError as error:
        got = "a file that takes too much memory to decode"
        raise invalid(path, got, "a smaller one", param) from error
    except Exception as error:
        raise invalid(path, reason(error), expected, param) from error


def reason(error: Exception) -> str:
    """Return what is wrong with a file, without its name, which `invalid` adds."""
    match error:
        case HeliosError():
            return str(error)
        case UnidentifiedImageError():
            return "an unsupported file format"
        case FFmpegError() | OSError() | Image.DecompressionBombError():
            return str(getattr(error, "strerror", None) or error)
        case _:
            return f"{type(error).__name__} while decoding"


def invalid(path: Path, got: str, expected: str, param: str) -> InvalidRequestError:
    return InvalidRequestError(f"{path}: got {got}, expected {expected}", param=param)


def check_exists(path: Path, param: str) -> None:
    if not path.exists():
        raise invalid(path, "no such file", "an existing file", param)


def check_size(path: Path, width: int, height: int, param: str) -> None:
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE and width * height <= MAX_PIXELS):
        expected = f"sides up to {MAX_SIDE} and at most {MAX_PIXELS} pixels"
        raise invalid(path, f"{width}x{height} pixels", expected, param)
