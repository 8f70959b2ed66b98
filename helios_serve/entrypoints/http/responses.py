"""Responses in the formats shared by all routes: JSON objects, pages of lists, and errors."""

import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse

from helios_serve.service.errors import ApiError, as_api_error
from helios_serve.service.protocol import ErrorBody
from helios_serve.service.videos.video_object import server_timing
from helios_serve.store.jobs import StoredJob

POLL_HEADERS = {"openai-poll-after-ms": "1000"}
MAX_RETRY_AFTER = 120
"""Longest `retry-after` in seconds that OpenAI's clients honor. For a longer one, they retry at
once.
"""


def json_response(body: msgspec.Struct, headers: dict[str, str] | None = None) -> Response:
    """Return a response with `body` as JSON."""
    return Response(msgspec.json.encode(body), 200, headers, media_type="application/json")


def timing_headers(job: StoredJob) -> dict[str, str]:
    """Return the header `server-timing` with the time of each stage; nothing if none is known."""
    timing = server_timing(job)
    return {} if timing is None else {"server-timing": timing}


def page_response(
    kind: Callable[..., msgspec.Struct], entries: Sequence[Any], *, has_more: bool
) -> Response:
    """Return one page of a list. The next page follows its last entry."""
    return json_response(
        kind(
            data=entries,
            first_id=entries[0].id if entries else None,
            last_id=entries[-1].id if entries else None,
            has_more=has_more,
        )
    )


def live_response(
    request: Request,
    content: AsyncIterator[bytes] | AsyncIterator[str],
    media_type: str,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return a response that streams `content`. A HEAD request gets the header alone, at once."""
    if request.method != "HEAD":
        return StreamingResponse(content, media_type=media_type, headers=headers)
    response = Response(media_type=media_type, headers=headers)
    del response.headers["content-length"]  # the content's length is unknown
    return response


def http_error(error: Exception) -> ApiError:
    """Convert an exception of a handler, including Starlette's, to an ApiError."""
    match error:
        case ClientDisconnect():  # while it sent its request, so the response is not read
            return ApiError(499, "the client disconnected", code="client_gone")
        case HTTPException(status_code=status, detail=detail):
            code = "not_found" if status == 404 else "invalid_request"
            return ApiError(status, f"{detail}", code=code)
        case _:
            return as_api_error(error)


async def handle_error(request: Request, error: Exception) -> Response:
    """Handle an exception, as Starlette calls it.

    The response also has the headers that the handler has put into `request.state.headers`.
    """
    response = error_response(error)
    response.headers.update(getattr(request.state, "headers", {}))
    return response


def error_response(error: Exception) -> Response:
    """Return the error response of an exception.

    `x-should-retry: false` stops OpenAI's clients from retrying.
    """
    api_error = http_error(error)
    retry_after = api_error.retry_after
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    if retry_after is not None:
        headers["retry-after"] = str(math.ceil(retry_after))
    if (retry_after or 0) > MAX_RETRY_AFTER or (retry_after is None and api_error.status != 503):
        headers["x-should-retry"] = "false"
    return Response(
        msgspec.json.encode(ErrorBody(api_error.detail)),
        api_error.status,
        headers,
        media_type="application/json",
    )
