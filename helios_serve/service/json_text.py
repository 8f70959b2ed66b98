"""Decoding of JSON that clients send. Its size and shape are checked before it is decoded."""

import re
from typing import Any, NamedTuple

import msgspec

from helios_serve.service.errors import ApiError

MAX_TEXT = 1 << 20
"""Maximum size in bytes of JSON, not counting the data: URLs in it."""
MAX_TOKENS = 50_000
"""Maximum number of strings, commas and brackets: objects take many times the memory of their
text.
"""
MAX_DEPTH = 32
UTF8_MARK = b"\xef\xbb\xbf"
TOKEN = re.compile(rb'["\[\]{},]')
MEDIA_NAMES = (b'"image_url"', b'"video_url"')
"""Names of the fields that may contain a data: URL."""
BACKSLASH = ord("\\")
BACKWARD = 4096
"""Bytes that are searched for backslashes at a time."""

Buffer = bytes | bytearray


class JsonShape(NamedTuple):
    """What a JSON text consists of: its tokens, and the bytes in its data: URLs."""

    tokens: int
    media: int


def decode_json(data: Buffer, most: int = MAX_TEXT) -> Any:
    """Return the value that `data` encodes.

    Raises ApiError 400 for invalid JSON, and 413 for more than `most` bytes besides data: URLs.
    """
    data = without_mark(data)
    check_shape(data, most)
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise invalid_json(f"not valid JSON: {error}") from error
    except RecursionError as error:
        raise invalid_json("nested too deeply") from error


def without_mark(data: Buffer) -> Buffer:
    """Return UTF-8 text without its byte order mark. Raises ApiError 400 for UTF-16 and UTF-32."""
    if data.startswith(UTF8_MARK):
        return data[len(UTF8_MARK) :]
    if is_wide(data):
        raise ApiError(400, "got text in UTF-16 or UTF-32, expected UTF-8", code="invalid_encoding")
    return data


def is_wide(data: Buffer) -> bool:
    """Return whether a text is UTF-16 or UTF-32, by its byte order mark or its zero bytes.

    JSON begins with an ASCII character, and a zero byte is not allowed in it.
    """
    return data[:2] in (b"\xff\xfe", b"\xfe\xff") or 0 in data[:2]


def check_shape(data: Buffer, most: int = MAX_TEXT) -> JsonShape:
    """Return the shape of a JSON text, in time proportional to its size and constant memory.

    The text may be invalid. Raises ApiError 400 for too many tokens or nested brackets, and 413 for
    more than `most` bytes besides data: URLs.
    """
    tokens = depth = media = position = 0
    name = b""
    while (match := TOKEN.search(data, position)) is not None:
        start, position = match.span()
        tokens += 1
        match match[0]:
            case b"[" | b"{":
                depth += 1
            case b"]" | b"}":
                depth -= 1
            case b'"':
                position, escapes = end_of_string(data, start)
                tokens += escapes
                if name in MEDIA_NAMES and data.startswith(b'"data:', start):
                    media += position - start
                name = bytes(data[start:position]) if position - start < 32 else b""
        if tokens > MAX_TOKENS:
            raise invalid_json(f"too complex, expected at most {MAX_TOKENS} values")
        if depth > MAX_DEPTH:
            raise invalid_json(f"nested too deeply, expected at most {MAX_DEPTH} levels")
    if len(data) - media > most:
        raise too_large(most)
    return JsonShape(tokens, media)


class StringEnd(NamedTuple):
    """Where a string ends, and how many escaped quotes it has."""

    position: int
    escapes: int


def end_of_string(data: Buffer, start: int) -> StringEnd:
    """Return the end of the string at `start`, found at the speed of memory.

    A string without an end reaches to the end of the text, or past MAX_TOKENS escaped quotes.
    """
    escapes = 0
    end = data.find(b'"', start + 1)
    while end >= 0 and is_escaped(data, end) and escapes <= MAX_TOKENS:
        escapes += 1
        end = data.find(b'"', end + 1)
    return StringEnd(len(data) if end < 0 else end + 1, escapes)


def is_escaped(data: Buffer, quote: int) -> bool:
    """Return whether an odd number of backslashes precedes a quote."""
    end = quote
    while end > 0 and data[end - 1] == BACKSLASH:
        piece = data[max(0, end - BACKWARD) : end]
        end -= len(piece) - len(piece.rstrip(b"\\"))
    return (quote - end) % 2 == 1


def invalid_json(problem: str) -> ApiError:
    return ApiError(400, f"body is {problem}", code="invalid_json")


def too_large(most: int) -> ApiError:
    return ApiError(
        413,
        f"body is too large, expected at most {most} bytes without images and videos",
        code="too_large",
    )
