"""Range requests and conditional requests (RFC 9110, sections 13 and 14)."""

import asyncio
import os
import re
from email.utils import parsedate_to_datetime

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import FileResponse
from starlette.types import Receive, Scope, Send

UNIT = re.compile(r"\s*bytes\s*=(.*)", re.IGNORECASE | re.DOTALL)
RANGE = re.compile(r"[ \t]*(?:([0-9]{1,18})-([0-9]{1,18})?|-([0-9]{1,18}))[ \t]*", re.ASCII)
MAX_RANGES = 100


def span_of(headers: Headers, size: int, e_tag: str | None) -> range | None:
    """Return the positions of the bytes to send of `size` bytes.

    It is empty if the range that is asked for lies beyond them. None means all bytes: without a
    valid range, for several ranges, or if `if-range` names another version.
    """
    asked, condition = headers.get("range"), headers.get("if-range")
    if asked is None or (condition is not None and condition != e_tag):
        return None
    kept = satisfiable(asked, size)
    found = None if kept is None else RANGE.fullmatch(kept)
    if found is None:
        return None
    first, last, suffix = found.groups()
    if first is None:
        return range(max(0, size - int(suffix)), size)
    return range(int(first), size if last is None else min(size, int(last) + 1))


class StoredFileResponse(FileResponse):
    """A file, or ranges of it.

    A header `range` with another unit, or that is not valid, is ignored, as RFC 9110 demands. The
    status is 416 only if no range lies in the file. It is 304, without the file, for a client that
    has this version of it.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = Headers(scope=scope)
        found = asked.get("range")
        is_conditional = scope["method"] in ("GET", "HEAD") and (
            "if-none-match" in asked or "if-modified-since" in asked
        )
        if found is not None or is_conditional:
            stat = await asyncio.to_thread(os.stat, self.path)
            if is_conditional:
                self.set_stat_headers(stat)
                if is_current(asked, self.headers):
                    await self._send_not_modified(send)
                    return
        if found is not None:
            size = stat.st_size
            rest = [item for item in scope["headers"] if item[0] != b"range"]
            ranges = satisfiable(found, size)
            if ranges is not None:
                rest.append((b"range", f"bytes={ranges}".encode()))
            scope = {**scope, "headers": rest}
        await super().__call__(scope, receive, send)

    async def _send_not_modified(self, send: Send) -> None:
        headers = MutableHeaders(raw=list(self.raw_headers))
        for name in ("content-length", "content-type"):
            del headers[name]
        start = {"type": "http.response.start", "status": 304, "headers": headers.raw}
        await send(start)
        await send({"type": "http.response.body", "body": b""})


def is_current(asked: Headers, stored: Headers) -> bool:
    """Return whether a client already has the stored version of a file.

    `if-none-match` takes precedence over `if-modified-since`, which is ignored if it is not a date.
    """
    if (tags := asked.get("if-none-match")) is not None:
        known = {tag.strip().removeprefix("W/") for tag in tags.split(",")}
        return "*" in known or stored["etag"] in known
    try:
        since = parsedate_to_datetime(asked["if-modified-since"])
        return parsedate_to_datetime(stored["last-modified"]) <= since
    except (TypeError, ValueError, OverflowError):
        return False


def satisfiable(header: str, size: int) -> str | None:
    """Return the ranges in the header `range` that lie in a file of `size` bytes.

    They are separated by commas. If there are none, one beyond the file is returned. None means
    that the header must be ignored.
    """
    match = UNIT.fullmatch(header)
    if match is None:
        return None
    kept = []
    parts = [part for part in match[1].split(",") if part.strip()]
    for part in parts:
        found = RANGE.fullmatch(part)
        if found is None:
            return None
        first, last, suffix = found.groups()
        if first is not None and last is not None and int(last) < int(first):
            return None
        if int(suffix) > 0 and size > 0 if first is None else int(first) < size:
            kept.append(part.strip())
    if not parts or len(parts) > MAX_RANGES:
        return None
    return ",".join(kept) or f"{size}-"
