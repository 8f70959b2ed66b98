"""Operations: a route, its handler, its types and its description in one row.

Routing and /openapi.json are both made from these rows.
"""

import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, NamedTuple, Protocol

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from helios_serve import __version__
from helios_serve.entrypoints.http.authentication import is_open
from helios_serve.entrypoints.http.paths import normalized
from helios_serve.service.protocol import ErrorBody, Json

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
TEMPLATE = "#/components/schemas/{name}"
FILE: Json = {"type": "string", "format": "binary"}
REDIRECTION: Json = {"description": "The content is at the signed URL in `location`"}
KEY: Json = {"type": "http", "scheme": "bearer"}
SINGLE_KEY: Json = {"type": "object", "minProperties": 1, "maxProperties": 1}
REFERENCES: Json = {
    "input_reference": SINGLE_KEY
    | {"properties": dict.fromkeys(("image_url", "video_url", "file_id"), TEXT)},
    "video": SINGLE_KEY | {"properties": dict.fromkeys(("id", "video_url", "file_id"), TEXT)},
}
"""Schemas of the fields that accept a reference object as well as a file."""


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

    `response` is a type that is sent as JSON, or a media type. `statuses` are the possible statuses
    other than success: those of errors, and 307 if an object store may send the content.
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


class OpenApi:
    """Serves the description of `operations` and of its own route."""

    def __init__(self, operations: Iterable[Operation], root_path: str = "") -> None:
        self.document = openapi_document((*operations, *self.operations))
        if root_path:
            self.document["servers"] = [{"url": normalized(root_path)}]

    @property
    def operations(self) -> tuple[Operation, ...]:
        return (
            Operation(
                "GET",
                "/openapi.json",
                self.show,
                "Get this OpenAPI description",
                JSON_TYPE,
                statuses=(),
            ),
        )

    async def show(self, request: Request) -> Response:  # noqa: ARG002
        return JSONResponse(self.document)


def openapi_document(operations: tuple[Operation, ...]) -> Json:
    """Return an OpenAPI 3.1 document. Its schemas are those of the protocol's types."""
    kinds = {item.response for item in operations if isinstance(item.response, type)}
    kinds |= {item.body.kind for item in operations if item.body and item.body.kind}
    kinds.add(ErrorBody)
    ordered = sorted(kinds, key=lambda kind: kind.__name__)
    _, schemas = msgspec.json.schema_components(ordered, ref_template=TEMPLATE)
    paths: dict[str, Json] = {}
    for operation in operations:
        path = operation.path.replace(":path", "")
        method = operation.method.lower()
        paths.setdefault(path, {})[method] = describe_operation(operation, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "helios-serve", "version": __version__},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"key": KEY}},
        "security": [{"key": []}, {}],
    }


def describe_operation(operation: Operation, schemas: dict[str, Any]) -> Json:
    """Return the OpenAPI description of an operation."""
    response = operation.response
    content = {response: {}} if isinstance(response, str) else as_json(response)
    error = {"description": "An error", "content": as_json(ErrorBody)}
    described: Json = {
        "summary": operation.summary,
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": TEXT}
            for name in re.findall(r"{(\w+)(?::\w+)?}", operation.path)
        ]
        + [
            {"name": name, "in": "query", "schema": schema}
            for name, schema in operation.query.items()
        ],
        "responses": {"200": {"description": "Success", "content": content}}
        | {str(status): REDIRECTION if status < 400 else error for status in operation.statuses},
    }
    if "{" in operation.path:  # it may name an object of another cell
        described["responses"]["421"] = error
    if is_open(operation.path):
        described["security"] = []
    else:
        described["responses"]["401"] = error
    if operation.body is not None:
        described["requestBody"] = describe_body(operation.body, schemas)
    return described


def describe_body(body: RequestBody, schemas: dict[str, Any]) -> Json:
    """Describe a request body. A form has the fields of the JSON body, and files."""
    content: Json = {}
    form: Json = {"type": "object", "properties": {}, "required": list(body.required)}
    if body.kind is not None:
        content = as_json(body.kind)
        own = schemas[body.kind.__name__]
        form["properties"] |= own["properties"]
        form["required"] += own.get("required", [])
        places = {name: REFERENCES[name] for name in body.files if name in REFERENCES}
        if places:
            content = {JSON_TYPE: {"schema": own | {"properties": own["properties"] | places}}}
    form["properties"] |= dict.fromkeys(body.fields, TEXT)
    form["properties"] |= {
        name: {"anyOf": [FILE, REFERENCES[name]]} if name in REFERENCES else FILE
        for name in body.files
    }
    if body.files:
        content[FORM_TYPE] = {"schema": form}
    return {"required": True, "content": content or {JSON_TYPE: {}}}


def as_json(kind: type) -> Json:
    """Return the content of a JSON body, as a reference to the schema of `kind`."""
    return {JSON_TYPE: {"schema": {"$ref": TEMPLATE.format(name=kind.__name__)}}}
