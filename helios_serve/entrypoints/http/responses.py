"""Responses in the shapes that all routes share: JSON objects, pages of lists, and errors."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from helios_serve.service.errors import ApiError, as_api_error
from helios_serve.service.protocol import ErrorBody

POLL_HEADERS = {"openai-poll-after-ms": "1000"}
LONGEST_WAIT = 120
"""Seconds of retry-after that clients honour; told a longer time, they try again at once."""


def json_response(body: msgspec.Struct, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(body), 200, headers, media_type="application/json")


def page_response(
    kind: Callable[..., msgspec.Struct], entries: Sequence[Any], *, has_more: bool
) -> Response:
    """One page as a list of `kind`; a client goes on behind its last entry."""
    return json_response(
        kind(
            data=entries,
            first_id=entries[0].id if entries else None,
            last_id=entries[-1].id if entries else None,
            has_more=has_more,
        )
    )


def http_error(error: Exception) -> ApiError:
    """Any exception of a handler in the API's words, the HTTP framework's own among them."""
    match error:
        case ClientDisconnect():  # before it had said all; nobody reads the answer
            return ApiError(499, "the client has gone", code="client_gone")
        case HTTPException(status_code=status, detail=detail):
            code = "not_found" if status == 404 else "invalid_request"
            return ApiError(status, f"{detail}", code=code)
        case _:
            return as_api_error(error)


async def handle_error(request: Request, error: Exception) -> Response:  # noqa: ARG001
    return error_response(error)


def error_response(error: Exception) -> Response:
    """The envelope; what a repetition cannot change says so."""
    told = http_error(error)
    headers = {}
    if told.retry_after is not None:
        headers["retry-after"] = str(math.ceil(told.retry_after))
    if (told.retry_after or 0) > LONGEST_WAIT or (told.retry_after is None and told.status != 503):
        headers["x-should-retry"] = "false"
    return Response(
        msgspec.json.encode(ErrorBody(told.detail)),
        told.status,
        headers,
        media_type="application/json",
    )
