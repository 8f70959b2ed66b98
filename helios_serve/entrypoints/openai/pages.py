"""Pages of lists, as clients ask for them."""

from typing import NamedTuple

from starlette.requests import Request

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
