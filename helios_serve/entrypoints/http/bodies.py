"""Request bodies, JSON or multipart, as fields and uploads; and the limit on their size."""

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
"""Bytes of a request, uploads included."""
MAX_FIELD = 64 << 20
"""Bytes of a form field: a data: URL is one."""
MAX_JSON = 64 << 20
"""Bytes of a JSON body, which is read as a whole."""
MAX_FIELDS, MAX_FILES = 200, 4
MAX_DEPTH = 8
"""Brackets in the name of a form field."""
KEY = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\])*)")
TEXTS = ("prompt", "negative_prompt")
"""Fields that are text, whatever they look like."""
PART = re.compile(r"\[([^\[\]]*)\]")


async def read_body(request: Request) -> Json:
    """The fields of a JSON or multipart body; raises ApiError for anything else."""
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


async def read_bounded(request: Request, most: int) -> bytes:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > most:
            raise ApiError(
                413,
                f"got a JSON body of more than {most} bytes, expected {most} at most; upload files "
                "as multipart/form-data",
                code="too_large",
            )
    return bytes(body)


def parse_json(data: bytes) -> Json:
    try:
        body = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ApiError(
            400, f"request body is not valid JSON: {error}", code="invalid_json"
        ) from error
    except RecursionError as error:
        raise ApiError(400, "got JSON that is nested too deeply", code="invalid_json") from error
    if not isinstance(body, dict):
        raise ApiError(
            400, f"got a JSON {type(body).__name__}, expected an object", code="invalid_json"
        )
    return body


def nest(items: Iterable[tuple[str, Any]]) -> Json:
    """Form fields such as `video[id]` and `steps[]` as objects and lists.

    A field that holds JSON text of an object or a list is read as that.
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
        put(body, [first, *PART.findall(rest)], value if name in TEXTS else unpacked(value), name)
    return body


def put(into: Json, path: list[str], value: Any, name: str) -> None:
    """Place a value by its path; an empty part of it appends to a list."""
    key, *rest = path
    if not rest:
        into[key] = value
    elif rest[0] == "":
        if len(rest) > 1:
            raise ApiError(400, f"got field {name!r}, expected [] at its end", code="invalid_field")
        check_kind(into.setdefault(key, []), list, name).append(value)
    else:
        put(check_kind(into.setdefault(key, {}), dict, name), rest, value, name)


def check_kind(found: Any, kind: type[Any], name: str) -> Any:
    if not isinstance(found, kind):
        raise ApiError(
            400, f"got field {name!r} beside another use of its name", code="invalid_field"
        )
    return found


def unpacked(value: Any) -> Any:
    if isinstance(value, str) and value[:1] in ("{", "["):
        with contextlib.suppress(msgspec.DecodeError, RecursionError):
            return msgspec.json.decode(value)
    return value


def as_upload(value: UploadFile | str) -> Upload | str:
    """An uploaded file in the service's type; text stays as it is."""
    if isinstance(value, UploadFile):
        return Upload(value.file, value.filename, value.content_type)
    return value


def take_uploads(body: Json) -> dict[str, Upload]:
    """Remove the uploaded files from a body and return them by name."""
    uploads = {name: value for name, value in body.items() if isinstance(value, Upload)}
    for name in uploads:
        del body[name]
    return uploads


class BodyLimit:
    """Stops reading where a body exceeds `limit` bytes, also one that comes without its length."""

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
                    f"got a body that is too large, expected {self.limit} bytes at most",
                    code="too_large",
                )
            return message

        await self.app(scope, limited, send)
