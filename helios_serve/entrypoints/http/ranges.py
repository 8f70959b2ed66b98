"""Range requests (RFC 9110, section 14)."""

import asyncio
import os
import re

from starlette.datastructures import Headers
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
    status is 416 only if no range lies in the file.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = Headers(scope=scope).get("range")
        if found is not None:
            size = (await asyncio.to_thread(os.stat, self.path)).st_size
            rest = [item for item in scope["headers"] if item[0] != b"range"]
            ranges = satisfiable(found, size)
            if ranges is not None:
                rest.append((b"range", f"bytes={ranges}".encode()))
            scope = {**scope, "headers": rest}
        await super().__call__(scope, receive, send)


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
