"""The API described for machines, at /openapi.json."""

import re
from typing import Any, NamedTuple

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from helios_serve import __version__
from helios_serve.entrypoints.http.authentication import is_open
from helios_serve.service.protocol import (
    Batch,
    BatchList,
    CreateBatch,
    CreateVideo,
    ErrorBody,
    ExtendVideo,
    FileDeleted,
    FileList,
    FileObject,
    Json,
    Model,
    ModelList,
    PromptSwitchedAt,
    RemixVideo,
    SwitchPrompt,
    Usage,
    Video,
    VideoDeleted,
    VideoList,
)

TEMPLATE = "#/components/schemas/{name}"
JSON_TYPE, FORM_TYPE = "application/json", "multipart/form-data"
TEXT: Json = {"type": "string"}
FILE: Json = {"type": "string", "format": "binary"}
KEY: Json = {"type": "http", "scheme": "bearer"}
ONE: Json = {"type": "object", "minProperties": 1, "maxProperties": 1}
REFERENCES: Json = {
    "input_reference": ONE
    | {"properties": dict.fromkeys(("image_url", "video_url", "file_id"), TEXT)},
    "video": ONE | {"properties": dict.fromkeys(("id", "video_url", "file_id"), TEXT)},
}
"""What may be in place of a file, in JSON and in forms."""


class RequestBody(NamedTuple):
    """What a request carries, as JSON where it has a `kind`, and in a form with `files`."""

    kind: type | None
    files: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    """Text fields of the form beside those of `kind`."""
    required: tuple[str, ...] = ()


class Operation(NamedTuple):
    """One route. `answer` is a type that comes as JSON, or a media type; `statuses` are those of
    the answers beside it."""

    method: str
    path: str
    summary: str
    answer: type | str
    body: RequestBody | None = None
    query: dict[str, Json] = {}
    statuses: tuple[int, ...] = (400, 404)


LIMIT: Json = {"type": "integer", "minimum": 1, "maximum": 100, "default": 20}
ORDER: Json = {"enum": ["asc", "desc"], "default": "desc"}
PAGE: Json = {"after": TEXT, "limit": LIMIT, "order": ORDER}
VARIANT: Json = {"enum": ["video", "thumbnail", "spritesheet"], "default": "video"}
DATE: Json = {"type": "string", "format": "date"}
FROM_CHUNK: Json = {"type": "integer", "minimum": 0}
ORDERS = (400, 403, 404, 409, 413, 415, 429, 503, 507)
"""Of the answers to a request for something new."""
VIDEO, FILES, BATCHES = "/v1/videos/{video_id}", "/v1/files/{file_id}", "/v1/batches/{batch_id}"

OPERATIONS = (
    Operation(
        "post",
        "/v1/videos",
        "Ask for a video; answered at once",
        Video,
        RequestBody(CreateVideo, ("input_reference",)),
        statuses=ORDERS,
    ),
    Operation("get", "/v1/videos", "Your videos, page by page", VideoList, query=PAGE),
    Operation(
        "post",
        "/v1/videos/sync",
        "Ask for a video and wait for it",
        "video/mp4",
        RequestBody(CreateVideo, ("input_reference",)),
        statuses=(*ORDERS, 500),
    ),
    Operation(
        "post",
        "/v1/videos/edits",
        "A video made from the frames of another one, uploaded or named by video[id]",
        Video,
        RequestBody(CreateVideo, ("video",)),
        statuses=ORDERS,
    ),
    Operation(
        "post",
        "/v1/videos/extensions",
        "A longer video that begins with a finished one",
        Video,
        RequestBody(ExtendVideo),
        statuses=ORDERS,
    ),
    Operation(
        "post",
        "/v1/videos/characters",
        "Not supported",
        JSON_TYPE,
        RequestBody(None),
        statuses=(501,),
    ),
    Operation("get", "/v1/videos/characters/{name}", "Not supported", JSON_TYPE, statuses=(501,)),
    Operation("get", VIDEO, "A video and how far it is", Video),
    Operation("delete", VIDEO, "End a video and forget it", VideoDeleted),
    Operation("post", f"{VIDEO}/cancel", "End a video and keep what was made", Video),
    Operation(
        "post",
        f"{VIDEO}/remix",
        "The same video under another prompt",
        Video,
        RequestBody(RemixVideo),
        statuses=ORDERS,
    ),
    Operation(
        "post",
        f"{VIDEO}/prompt",
        "Turn a video in the making to another prompt",
        PromptSwitchedAt,
        RequestBody(SwitchPrompt),
        statuses=(400, 404, 409, 415, 503),
    ),
    Operation(
        "get",
        f"{VIDEO}/content",
        "The finished file, or a picture of it; takes ranges",
        "video/mp4",
        query={"variant": VARIANT},
        statuses=(400, 404, 409, 416),
    ),
    Operation(
        "get",
        f"{VIDEO}/stream",
        "A fragmented MP4 that grows while the video is made",
        "video/mp4",
        query={"from_chunk": FROM_CHUNK},
    ),
    Operation(
        "get",
        f"{VIDEO}/events",
        "What happens to a video, as server-sent events; 204 when all was told",
        "text/event-stream",
        query={"from_chunk": FROM_CHUNK},
    ),
    Operation(
        "get",
        f"{VIDEO}/hls/index.m3u8",
        "An HLS playlist that grows while the video is made",
        "application/vnd.apple.mpegurl",
        statuses=(404, 409, 503),
    ),
    Operation("get", f"{VIDEO}/hls/init.mp4", "Its header", "video/mp4", statuses=(404,)),
    Operation(
        "get", f"{VIDEO}/hls/{{chunk}}.m4s", "One chunk", "video/iso.segment", statuses=(404,)
    ),
    Operation(
        "post",
        "/v1/files",
        "Keep a file: the lines of a batch, or a reference",
        FileObject,
        RequestBody(None, ("file",), ("purpose",), ("file", "purpose")),
        statuses=(400, 413, 415, 507),
    ),
    Operation(
        "get",
        "/v1/files",
        "Your files, page by page",
        FileList,
        query=PAGE | {"limit": LIMIT | {"maximum": 10000}, "purpose": TEXT},
    ),
    Operation("get", FILES, "What is known of a file", FileObject),
    Operation("delete", FILES, "Delete a file", FileDeleted),
    Operation("get", f"{FILES}/content", "What is in a file", "application/octet-stream"),
    Operation(
        "post",
        "/v1/batches",
        "A video for every line of a file",
        Batch,
        RequestBody(CreateBatch),
        statuses=(400, 404, 413, 415, 507),
    ),
    Operation(
        "get",
        "/v1/batches",
        "Your batches, newest first",
        BatchList,
        query={"after": TEXT, "limit": LIMIT},
    ),
    Operation("get", BATCHES, "A batch and how far it is", Batch),
    Operation("post", f"{BATCHES}/cancel", "End a batch and keep what was made", Batch),
    Operation(
        "get",
        "/v1/usage",
        "What you have asked for and got, by day",
        Usage,
        query={"start_date": DATE, "end_date": DATE},
        statuses=(400,),
    ),
    Operation("get", "/v1/models", "The models that are served", ModelList, statuses=()),
    Operation("get", "/v1/models/{model}", "One of them", Model, statuses=(404,)),
    Operation("get", "/health", "Whether every model can make videos", JSON_TYPE, statuses=(503,)),
    Operation("get", "/liveness", "Whether the server answers", JSON_TYPE, statuses=()),
    Operation("get", "/version", "The version of the server", JSON_TYPE, statuses=()),
    Operation("get", "/metrics", "Counts and times for Prometheus", "text/plain", statuses=()),
    Operation("get", "/openapi.json", "This description", JSON_TYPE, statuses=()),
)


class OpenApi:
    """The description, made once."""

    def __init__(self) -> None:
        self.document = openapi_document(OPERATIONS)

    @property
    def routes(self) -> list[Route]:
        return [Route("/openapi.json", self.show)]

    async def show(self, request: Request) -> Response:  # noqa: ARG002
        return JSONResponse(self.document)


def openapi_document(operations: tuple[Operation, ...]) -> Json:
    """An OpenAPI 3.1 document; its schemas are those of the protocol's types."""
    kinds = {item.answer for item in operations if isinstance(item.answer, type)}
    kinds |= {item.body.kind for item in operations if item.body and item.body.kind}
    kinds.add(ErrorBody)
    ordered = sorted(kinds, key=lambda kind: kind.__name__)
    _, schemas = msgspec.json.schema_components(ordered, ref_template=TEMPLATE)
    paths: dict[str, Json] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method] = describe_operation(
            operation, schemas
        )
    return {
        "openapi": "3.1.0",
        "info": {"title": "helios-serve", "version": __version__},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"key": KEY}},
        "security": [{"key": []}, {}],
    }


def describe_operation(operation: Operation, schemas: dict[str, Any]) -> Json:
    answer = operation.answer
    content = {answer: {}} if isinstance(answer, str) else as_json(answer)
    error = {"description": "An error", "content": as_json(ErrorBody)}
    described: Json = {
        "summary": operation.summary,
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": TEXT}
            for name in re.findall(r"{(\w+)}", operation.path)
        ]
        + [
            {"name": name, "in": "query", "schema": schema}
            for name, schema in operation.query.items()
        ],
        "responses": {"200": {"description": "As asked", "content": content}}
        | {str(status): error for status in operation.statuses},
    }
    if is_open(operation.path):
        described["security"] = []
    else:
        described["responses"]["401"] = error
    if operation.body is not None:
        described["requestBody"] = describe_body(operation.body, schemas)
    return described


def describe_body(body: RequestBody, schemas: dict[str, Any]) -> Json:
    """A form has the fields of the JSON, and files."""
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
    return {JSON_TYPE: {"schema": {"$ref": TEMPLATE.format(name=kind.__name__)}}}
