"""Operations: a route, its handler, its types and its description in one row.

Routing and /openapi.json are both made from these rows.
"""

from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple, Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from helios_serve.service.protocol import Json

Handler = Callable[[Request], Awaitable[Response]]

JSON_TYPE, FORM_TYPE = "application/json", "multipart/form-data"
TEXT: Json = {"type": "string"}
LIMIT: Json = {"type": "integer", "minimum": 1, "maximum": 100, "default": 20}
ORDER: Json = {"enum": ["asc", "desc"], "default": "desc"}
PAGE: Json = {"after": TEXT, "limit": LIMIT, "order": ORDER}
"""Query parameters of a list."""
FROM_CHUNK: Json = {"from_chunk": {"type": "integer", "minimum": 0}}
CREATION_ERRORS = (400, 403, 404, 409, 413, 415, 429, 503, 507)
"""Statuses with which a request for a new video may be refused."""
VIDEO = "/v1/videos/{video_id}"


class RequestBody(NamedTuple):
    """What a request carries: JSON of `kind`, and a form with `files` if there are any.

    `fields` are text fields of the form that `kind` does not have; `required` names those of the
    form that must be there.
    """

    kind: type | None
    files: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    required: tuple[str, ...] = ()


class Operation(NamedTuple):
    """One method of one path, as Starlette writes paths.

    `answer` is a type that is sent as JSON, or a media type. `statuses` are those of error answers.
    """

    method: str
    path: str
    handler: Handler
    summary: str
    answer: type | str
    body: RequestBody | None = None
    query: Json = {}
    statuses: tuple[int, ...] = (400, 404)


class HasOperations(Protocol):
    """A part of the API."""

    @property
    def operations(self) -> Iterable[Operation]: ...


def routes_of(operations: Iterable[Operation]) -> list[Route]:
    """Routes in the order of their operations."""
    return [Route(item.path, item.handler, methods=[item.method]) for item in operations]
