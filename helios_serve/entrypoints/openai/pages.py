"""Pages of lists, as clients ask for them."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from helios_serve.entrypoints.openai.answers import answer
from helios_serve.entrypoints.openai.whole_numbers import whole_number
from helios_serve.errors import InvalidRequestError


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


def page_answer(
    kind: Callable[..., msgspec.Struct], entries: Sequence[Any], *, has_more: bool
) -> Response:
    """One page as a list of `kind`; a client goes on behind its last entry."""
    return answer(
        kind(
            data=entries,
            first_id=entries[0].id if entries else None,
            last_id=entries[-1].id if entries else None,
            has_more=has_more,
        )
    )
