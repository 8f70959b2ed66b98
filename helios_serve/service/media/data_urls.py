"""Decoding of data: URLs (RFC 2397)."""

import base64
import binascii
import re
from urllib.parse import unquote_to_bytes

HEAD = re.compile(
    r"data:([\w.+-]+/[\w.+-]+)?((?:;[\w.+-]+=[^;,]*)*)(;base64)?,", re.ASCII | re.IGNORECASE
)
MAX_HEAD = 200
BROKEN_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")


def decode_data_url(url: str) -> bytes:
    """Return the content of a data: URL. Raises ValueError for an invalid one."""
    head = HEAD.match(url[:MAX_HEAD])
    if head is None:
        raise ValueError("invalid data: URL, expected data:TYPE;base64,DATA")
    if not url.isascii():
        raise ValueError("invalid data: URL: got non-ASCII characters, expected percent-encoding")
    content = url[head.end() :]
    if BROKEN_PERCENT.search(content):
        raise ValueError("invalid data: URL: got % without two hexadecimal digits after it")
    raw = unquote_to_bytes(content) if "%" in content else content.encode()
    if head[3] is None:
        return raw
    try:
        return base64.b64decode(raw, validate=True)
    except binascii.Error as error:
        raise ValueError(f"invalid data: URL: content is not valid base64: {error}") from error
