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
