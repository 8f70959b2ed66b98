"""Query parameters shared by several routes."""

import re
from typing import NamedTuple

from starlette.requests import Request

from helios_serve.errors import InvalidRequestError
from helios_serve.store.jobs import StoredJob

NUMBER = re.compile(r"[0-9]{1,9}")


class PageQuery(NamedTuple):
    """A page of a list: up to `limit` entries that follow the entry with id `after`."""

    after: str | None
    limit: int
    newest_first: bool


def page_query(request: Request, *, default: int = 20, maximum: int = 100) -> PageQuery:
    """Parse the parameters of a page. Raises InvalidRequestError, which names the parameter."""
    query = request.query_params
    text, order = query.get("limit", str(default)), query.get("order", "desc")
    limit = whole_number(text)
    if limit is None or not 1 <= limit <= maximum:
        raise InvalidRequestError(f"got limit {text!r}, expected 1 to {maximum}", param="limit")
    if order not in ("asc", "desc"):
        raise InvalidRequestError(f"got order {order!r}, expected asc or desc", param="order")
    return PageQuery(query.get("after"), limit, order == "desc")


def whole_number(text: str) -> int | None:
    """Parse up to nine decimal digits; None for anything else.

    The number of digits is limited, because Python raises ValueError for thousands of them.
    """
    return int(text) if NUMBER.fullmatch(text) else None


def first_chunk_query(request: Request, job: StoredJob) -> int:
    """Return the parameter `from_chunk`; by default, the video's first chunk.

    Raises InvalidRequestError for a chunk that the video does not have.
    """
    text = request.query_params.get("from_chunk", str(job.first_chunk))
    first = whole_number(text)
    if first is not None and job.is_endless:
        first = max(first, job.first_chunk)  # it may have been deleted since the client looked
    if first is None or not job.first_chunk <= first < job.num_chunks:
        raise InvalidRequestError(
            f"got from_chunk {text!r}, expected {job.first_chunk} to {job.num_chunks - 1}",
            param="from_chunk",
        )
    return first
