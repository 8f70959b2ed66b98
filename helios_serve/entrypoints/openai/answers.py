"""Answers in the shapes that all routes share."""

import msgspec
from starlette.responses import Response

POLL_HEADERS = {"openai-poll-after-ms": "1000"}


def answer(body: msgspec.Struct, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(body), 200, headers, media_type="application/json")
