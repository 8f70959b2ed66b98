"""Parsing of request bodies (JSON and forms), and limits on their size."""

import asyncio
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, NamedTuple

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from helios_serve.entrypoints.http.authentication import check_authority
from helios_serve.entrypoints.http.forms import (
    MAX_FIELD,
    FormField,
    decoded,
    parse_urlencoded,
    read_multipart,
)
from helios_serve.entrypoints.http.responses import error_response
from helios_serve.service.errors import ApiError
from helios_serve.service.json_text import (
    MAX_TEXT,
    MAX_TOKENS,
    Buffer,
    check_shape,
    decode_json,
    too_large,
)
from helios_serve.service.media.uploads import Spool, Upload
from helios_serve.service.protocol import Json

MAX_BODY = 512 << 20
"""Maximum size in bytes of a request, including uploads."""
MAX_JSON = MAX_FIELD
"""Maximum size in bytes of a JSON body, which is read into memory. It may contain a data: URL."""
LARGE = 64 << 10
"""A body of at least this many bytes is parsed outside of the event loop's thread."""
MAX_DEPTH = 8
"""Maximum number of brackets in the name of a form field."""
KEY = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\])*)")
TEXT_FIELDS = ("prompt", "negative_prompt")
"""Form fields that are never parsed as JSON."""
PART = re.compile(r"\[([^\[\]]*)\]")
MULTIPART, URLENCODED = "multipart/form-data", "application/x-www-form-urlencoded"
JSON_TYPES = ("", "application/json", "text/json")
UPLOADS = "helios.uploads"
"""Key of the ASGI scope that holds the request's uploads, which are deleted after its response."""
LIMITS = "helios.limits"
"""Key of the ASGI scope that holds the request's `BodyLimits`."""


class BodyLimits(NamedTuple):
    """Maximum sizes in bytes of a whole body, and of a body without its images and videos.

    `spool` is where uploads are written.
    """

    body: int = MAX_BODY
    text: int = MAX_TEXT
    spool: Spool = Spool()


async def read_body(request: Request, *, takes_media: bool = False) -> Json:
    """Return the fields of a JSON or form body.

    With `takes_media`, images and videos in it do not count against the limit of its text. Raises
    ApiError for an invalid body, and 401 if the API key was revoked while the body arrived.
    """
    if (coding := request.headers.get("content-encoding", "identity").lower()) != "identity":
        raise unsupported(f"got content-encoding {coding[:100]!r}, expected none")
    content_type = request.headers.get("content-type", "")
    kind = content_type.partition(";")[0].strip().lower()
    limits: BodyLimits = request.scope.get(LIMITS, BodyLimits())
    most = limits.text
    if kind == MULTIPART:
        check_length(request, limits.body if takes_media else most, most)
        fields = await read_multipart(request.stream(), content_type, most, limits.spool)
        uploads = [field.value for field in fields if isinstance(field.value, Upload)]
        request.scope.setdefault(UPLOADS, []).extend(uploads)
        body = await asyncio.to_thread(nest, fields)
    elif kind == URLENCODED:
        body = await parsed(await read_bounded(request, most, most), parse_form, most)
    elif kind in JSON_TYPES:
        data = await read_bounded(request, MAX_JSON if takes_media else most, most)
        body = await parsed(data, parse_json, most)
    else:
        raise unsupported(
            f"got content-type {kind[:100]!r}, expected application/json or multipart/form-data"
        )
    await check_authority(request)
    return body


def unsupported(message: str) -> ApiError:
    return ApiError(415, message, code="unsupported_media_type")


def check_length(request: Request, limit: int, most: int) -> None:
    """Raise ApiError 413 if the request declares more than `limit` bytes."""
    if declared_length(request.scope) > limit:
        raise too_large(most) if limit == most else body_too_large(limit)


async def read_bounded(request: Request, limit: int, most: int) -> bytearray:
    """Return the body. Raises ApiError 413 if it has more than `limit` bytes."""
    check_length(request, limit, most)
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > limit:
            raise too_large(most) if limit == most else body_too_large(limit)
    return body


async def parsed(data: bytearray, parse: Callable[[Buffer, int], Json], most: int) -> Json:
    """Return the body as parsed by `parse`. A large one is parsed in another thread."""
    if len(data) < LARGE:
        return parse(data, most)
    return await asyncio.to_thread(parse, data, most)


def parse_json(data: Buffer, most: int = MAX_TEXT) -> Json:
    """Return the fields of a JSON object. Raises ApiError 400 for anything else."""
    body = decode_json(data, most)
    if not isinstance(body, dict):
        raise ApiError(
            400, f"got a JSON {type(body).__name__}, expected an object", code="invalid_json"
        )
    return body


def parse_form(data: Buffer, most: int) -> Json:  # noqa: ARG001
    """Return the fields of a URL-encoded form."""
    return nest(parse_urlencoded(data))


def nest(fields: Iterable[FormField]) -> Json:
    """Convert form fields such as `video[id]` and `steps[]` to objects and lists.

    A field whose value is the JSON text of an object or a list is parsed. A field that was left
    empty is left out. Raises ApiError for an invalid field.
    """
    body: Json = {}
    tokens = 0
    for name, value in fields:
        match = KEY.fullmatch(name)
        if match is None or name.count("[") > MAX_DEPTH:
            raise ApiError(
                400,
                f"got field {name[:100]!r}, expected a name such as video[id]",
                code="invalid_field",
            )
        if is_left_empty(value):
            continue
        if is_json(name, value):
            assert isinstance(value, bytes)
            tokens += check_shape(value).tokens
            if tokens > MAX_TOKENS:
                raise ApiError(
                    400,
                    f"form is too complex, expected at most {MAX_TOKENS} values",
                    code="invalid_field",
                )
        first, rest = match.groups()
        put(body, [first, *PART.findall(rest)], field_value(name, value), name)
    return body


def is_left_empty(value: bytes | Upload) -> bool:
    """Return whether a form field was left empty. Browsers send those, too."""
    if isinstance(value, bytes):
        return not value
    if value.filename:
        return False
    is_empty = not value.file.read(1)
    value.file.seek(0)
    return is_empty


def is_json(name: str, value: bytes | Upload) -> bool:
    return isinstance(value, bytes) and name not in TEXT_FIELDS and value[:1] in (b"{", b"[")


def field_value(name: str, value: bytes | Upload) -> Any:
    """Return the parsed object or list if a field is its JSON text, else its text or file."""
    if isinstance(value, Upload):
        return value
    if is_json(name, value):
        with suppress(ApiError):
            return decode_json(value)
    return decoded(value, f"form field {name[:100]!r}")


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


def take_uploads(body: Json) -> dict[str, Upload]:
    """Remove the uploaded files from a body, and return them by field name."""
    uploads = {name: value for name, value in body.items() if isinstance(value, Upload)}
    for name in uploads:
        del body[name]
    return uploads


class BodyLimit:
    """Middleware that rejects a body that is too large with 413.

    A declared length is checked before anything is read. The bytes are also counted as they arrive,
    because a chunked body does not declare its length.
    """

    def __init__(self, app: ASGIApp, limits: BodyLimits | None = None) -> None:
        self.app = app
        self.limits = limits or BodyLimits()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        most = self.limits.body
        received = 0
        is_awaited = "100-continue" in Headers(scope=scope).get("expect", "").lower()

        async def limited() -> Message:
            nonlocal received, is_awaited
            is_awaited = False
            message = await receive()
            received += len(message.get("body", b""))
            if received > most:
                raise body_too_large(most)
            return message

        async def closing(message: Message) -> None:
            """Close a connection whose client waits for 100 Continue: its body may still follow."""
            if is_awaited and message["type"] == "http.response.start":
                MutableHeaders(scope=message)["connection"] = "close"
            await send(message)

        if declared_length(scope) > most:
            await error_response(body_too_large(most))(scope, receive, closing)
            return
        uploads: list[Upload] = []
        try:
            await self.app({**scope, LIMITS: self.limits, UPLOADS: uploads}, limited, closing)
        finally:
            for upload in uploads:
                upload.file.close()


def declared_length(scope: Scope) -> int:
    """Return the length that a request declares; 0 if it declares none."""
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value[:20])
    return 0


def body_too_large(limit: int) -> ApiError:
    return ApiError(
        413, f"request body is too large, expected at most {limit} bytes", code="too_large"
    )
