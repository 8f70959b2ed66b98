"""Media inside of a URL."""

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
    """What is in it; raises ValueError, with a message that says what was got."""
    head = HEAD.match(url[:MAX_HEAD])
    if head is None:
        raise ValueError("got a data: URL that is none, expected data:TYPE;base64,DATA")
    if not url.isascii():
        raise ValueError("got a data: URL with other characters than ASCII")
    content = url[head.end() :]
    if BROKEN_PERCENT.search(content):
        raise ValueError("got a data: URL with a % that no two hexadecimal digits follow")
    raw = unquote_to_bytes(content) if "%" in content else content.encode()
    if head[3] is None:
        return raw
    try:
        return base64.b64decode(raw, validate=True)
    except binascii.Error as error:
        raise ValueError(f"got a data: URL whose base64 is broken: {error}") from error
