"""Parsing of request bodies (JSON and forms), and limits on their size."""

import contextlib
import re
from collections.abc import Iterable
from typing import Any

import msgspec
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from helios_serve.service.errors import ApiError
from helios_serve.service.media.uploads import Upload
from helios_serve.service.protocol import Json

MAX_BODY = 512 << 20
"""Maximum size in bytes of a request, including uploads."""
MAX_FIELD = 64 << 20
"""Maximum size in bytes of a form field. A data: URL is one."""
MAX_JSON = 64 << 20
"""Maximum size in bytes of a JSON body, which is read into memory."""
MAX_FIELDS, MAX_FILES = 200, 4
MAX_DEPTH = 8
"""Maximum number of brackets in the name of a form field."""
KEY = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\])*)")
TEXT_FIELDS = ("prompt", "negative_prompt")
"""Form fields that are never parsed as JSON."""
PART = re.compile(r"\[([^\[\]]*)\]")


async def read_body(request: Request) -> Json:
    """Return the fields of a JSON or form body. Raises ApiError for an invalid body."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json" or not kind:
        return parse_json(await read_bounded(request, MAX_JSON))
    if kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
        form = await request.form(
            max_files=MAX_FILES, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD
        )
        return nest((name, as_upload(value)) for name, value in form.multi_items())
    raise ApiError(
        415,
        f"got content-type {kind!r}, expected application/json or multipart/form-data",
        code="unsupported_media_type",
    )


async def read_bounded(request: Request, limit: int) -> bytes:
    """Return the body. Raises ApiError 413 if it has more than `limit` bytes."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > limit:
            raise ApiError(
                413,
                f"JSON body is too large, expected at most {limit} bytes; upload files as "
                "multipart/form-data",
                code="too_large",
            )
    return bytes(body)


def parse_json(data: bytes) -> Json:
    """Return the fields of a JSON object. Raises ApiError 400 for anything else."""
    try:
        body = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ApiError(
            400, f"request body is not valid JSON: {error}", code="invalid_json"
        ) from error
    except RecursionError as error:
        raise ApiError(400, "JSON body is nested too deeply", code="invalid_json") from error
    if not isinstance(body, dict):
        raise ApiError(
            400, f"got a JSON {type(body).__name__}, expected an object", code="invalid_json"
        )
    return body


def nest(items: Iterable[tuple[str, Any]]) -> Json:
    """Convert form fields such as `video[id]` and `steps[]` to objects and lists.

    A field whose value is the JSON text of an object or a list is parsed. Raises ApiError for an
    invalid field name.
    """
    body: Json = {}
    for name, value in items:
        match = KEY.fullmatch(name)
        if match is None or name.count("[") > MAX_DEPTH:
            raise ApiError(
                400,
                f"got field {name[:100]!r}, expected a name such as video[id]",
                code="invalid_field",
            )
        first, rest = match.groups()
        put(
            body,
            [first, *PART.findall(rest)],
            value if name in TEXT_FIELDS else parse_json_text(value),
            name,
        )
    return body


def put(into: Json, path: list[str], value: Any, name: str) -> None:
    """Set the value at a path of keys. An empty last key appends to a list."""
    key, *rest = path
    if not rest:
        into[key] = value
    elif rest[0] == "":
        if len(rest) > 1:
            raise ApiError(
                400, f"got field {name!r}, expected [] only at the end", code="invalid_field"
            )
        check_kind(into.setdefault(key, []), list, name).append(value)
    else:
        put(check_kind(into.setdefault(key, {}), dict, name), rest, value, name)


def check_kind(found: Any, kind: type[Any], name: str) -> Any:
    """Return `found`. Raises ApiError 400 unless it is a `kind`."""
    if not isinstance(found, kind):
        raise ApiError(
            400, f"field {name!r} is used twice with different structure", code="invalid_field"
        )
    return found


def parse_json_text(value: Any) -> Any:
    """Return the parsed object or list if `value` is its JSON text, else `value`."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        with contextlib.suppress(msgspec.DecodeError, RecursionError):
            return msgspec.json.decode(value)
    return value


def as_upload(value: UploadFile | str) -> Upload | str:
    """Convert an uploaded file to the service's type. Text is returned unchanged."""
    if isinstance(value, UploadFile):
        return Upload(value.file, value.filename, value.content_type)
    return value


def take_uploads(body: Json) -> dict[str, Upload]:
    """Remove the uploaded files from a body, and return them by field name."""
    uploads = {name: value for name, value in body.items() if isinstance(value, Upload)}
    for name in uploads:
        del body[name]
    return uploads


class BodyLimit:
    """Middleware that rejects a body of more than `limit` bytes with 413.

    The bytes are counted as they arrive, because a chunked body does not declare its length.
    """

    def __init__(self, app: ASGIApp, limit: int = MAX_BODY) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.limit:
                raise ApiError(
                    413,
                    f"request body is too large, expected at most {self.limit} bytes",
                    code="too_large",
                )
            return message

        await self.app(scope, limited, send)
