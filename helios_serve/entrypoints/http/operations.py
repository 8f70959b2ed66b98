"""Operations: declarations of the API's routes.

Both the routing table and /openapi.json are generated from them.
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
"""Error statuses of requests that create a video."""
VIDEO = "/v1/videos/{video_id}"


class RequestBody(NamedTuple):
    """A request's body: JSON of type `kind`, and a form if it accepts `files`.

    `fields` are the form's text fields in addition to those of `kind`. `required` lists the form's
    required fields.
    """

    kind: type | None
    files: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    required: tuple[str, ...] = ()


class Operation(NamedTuple):
    """One method of one path, in Starlette's path syntax.

    `response` is a type that is sent as JSON, or a media type. `statuses` are the possible error
    statuses.
    """

    method: str
    path: str
    handler: Handler
    summary: str
    response: type | str
    body: RequestBody | None = None
    query: Json = {}
    statuses: tuple[int, ...] = (400, 404)


class HasOperations(Protocol):
    """A part of the API that declares operations."""

    @property
    def operations(self) -> Iterable[Operation]: ...


def routes_of(operations: Iterable[Operation]) -> list[Route]:
    """Return the routes of the operations, in the same order."""
    return [Route(item.path, item.handler, methods=[item.method]) for item in operations]
