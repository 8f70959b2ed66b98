"""Query parameters that several routes take: whole numbers and pages of lists."""

import re
from typing import NamedTuple

from starlette.requests import Request

from helios_serve.errors import InvalidRequestError
from helios_serve.store.jobs import StoredJob

NUMBER = re.compile(r"[0-9]{1,9}")


class PageQuery(NamedTuple):
    """`limit` entries behind the one called `after`, by age."""

    after: str | None
    limit: int
    newest_first: bool


def page_query(request: Request, *, default: int = 20, most: int = 100) -> PageQuery:
    """Raises InvalidRequestError naming the parameter."""
    query = request.query_params
    text, order = query.get("limit", str(default)), query.get("order", "desc")
    limit = whole_number(text)
    if limit is None or not 1 <= limit <= most:
        raise InvalidRequestError(f"got limit {text!r}, expected 1 to {most}", param="limit")
    if order not in ("asc", "desc"):
        raise InvalidRequestError(f"got order {order!r}, expected asc or desc", param="order")
    return PageQuery(query.get("after"), limit, order == "desc")


def whole_number(text: str) -> int | None:
    """None for what is not up to nine plain digits: Python raises ValueError at thousands of
    them."""
    return int(text) if NUMBER.fullmatch(text) else None


def first_chunk_query(request: Request, job: StoredJob) -> int:
    """The chunk named by `from_chunk`, the video's first one by default.

    Raises InvalidRequestError for a chunk that the video does not have.
    """
    text = request.query_params.get("from_chunk", str(job.first_chunk))
    first = whole_number(text)
    if first is None or not job.first_chunk <= first < job.num_chunks:
        raise InvalidRequestError(
            f"got from_chunk {text!r}, expected {job.first_chunk} to {job.num_chunks - 1}",
            param="from_chunk",
        )
    return first
