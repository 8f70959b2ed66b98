"""Lines of batch files: one request each, in OpenAI's batch format."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, BinaryIO, NamedTuple

import msgspec
from msgspec import Meta

from helios_serve.errors import InvalidRequestError
from helios_serve.media.references import load_image, load_video
from helios_serve.model_config import HeliosConfig
from helios_serve.options.fields import read_options, value_text
from helios_serve.service.errors import ApiError
from helios_serve.service.json_text import UTF8_MARK, Buffer, check_shape, is_wide, without_mark
from helios_serve.service.protocol import CreateVideo
from helios_serve.service.videos.requests import (
    asked_size,
    check_has_end,
    creation,
    sampled_size,
    with_plain_options,
)
from helios_serve.store.batches import LineError
from helios_serve.video_request import VideoRequest, check_references

URL = "/v1/videos"
MAX_LINES = 50_000
MAX_LINE = 66 << 20
"""Maximum length of a line in bytes. It may contain a data: URL."""
MAX_CUSTOM_ID = 512
"""Maximum length of a custom_id, in characters: all of a file are compared in memory."""
MAX_ERRORS = 100
"""Maximum number of errors reported for one file."""


class BatchLine(msgspec.Struct, frozen=True, kw_only=True):
    """A request for a new video. `body` has the fields of POST /v1/videos."""

    custom_id: str
    body: dict[str, Any]
    method: str = "POST"
    url: str = URL


class LineName(msgspec.Struct, frozen=True):
    """The custom_id of a line, read on its own because other fields may be invalid."""

    custom_id: str


class LineSpan(NamedTuple):
    """Position of a line in its file: its number (from 1), first byte, and length in bytes."""

    number: int
    start: int
    length: int


class CheckedFile(NamedTuple):
    """The lines of a file, and the errors found in them."""

    spans: list[LineSpan]
    errors: list[LineError]


def parse_line(text: Buffer, number: int) -> BatchLine | LineError:
    """Parse a line of a batch file. Return the error if it is invalid."""
    try:
        text = without_mark(text)
        check_shape(text)
        line = msgspec.json.decode(text, type=BatchLine)
    except (msgspec.DecodeError, UnicodeDecodeError, ApiError) as error:
        return LineError("invalid_json_line", f"invalid request: {error}", number)
    if (line.method, line.url) != ("POST", URL):
        message = f"got {line.method} {line.url}, expected POST {URL}"
        return LineError("invalid_url", message, number, "url")
    return line


def line_name(text: Buffer) -> str | None:
    """Return the custom_id of a line, even if the rest of it is invalid; None if there is none."""
    try:
        text = without_mark(text)
        check_shape(text)
        return msgspec.json.decode(text, type=LineName).custom_id
    except (msgspec.DecodeError, UnicodeDecodeError, ApiError):
        return None


def check_file(path: Path) -> CheckedFile:
    """Check every line of a batch file without keeping it in memory. Empty lines are skipped.

    Lines end with LF or CRLF. The file is UTF-8; a byte order mark is skipped.
    """
    spans: list[LineSpan] = []
    errors: list[LineError] = []
    seen: dict[str, int] = {}
    with path.open("rb") as file:
        if is_wide(file.read(2)):
            message = "got a file in UTF-16 or UTF-32, expected UTF-8"
            return CheckedFile([], [LineError("invalid_encoding", message)])
        start = 0
        for number, text in enumerate(read_lines(file), 1):
            if text.removeprefix(UTF8_MARK).strip():
                spans.append(LineSpan(number, start, len(text)))
                errors += line_errors(number, text, seen)
            start += len(text)
            if len(spans) > MAX_LINES:
                message = f"too many requests, expected at most {MAX_LINES}"
                errors.append(LineError("too_many_lines", message))
            if len(errors) >= MAX_ERRORS or len(spans) > MAX_LINES or len(text) > MAX_LINE:
                break
    if not spans:
        message = "got a file without requests, expected at least one"
        errors.append(LineError("empty_file", message))
    return CheckedFile(spans, errors)


def read_lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield the lines of a file, each at most one byte longer than MAX_LINE."""
    file.seek(0)
    while text := file.readline(MAX_LINE + 1):
        yield text


def line_errors(number: int, text: bytes, seen: dict[str, int]) -> list[LineError]:
    """Return the errors of a line.

    `seen` maps earlier custom ids to their line numbers, and is updated.
    """
    if len(text) > MAX_LINE:
        message = f"got a longer line, expected at most {MAX_LINE} bytes"
        return [LineError("line_too_long", message, number)]
    line = parse_line(text, number)
    if isinstance(line, LineError):
        return [line]
    if len(line.custom_id) > MAX_CUSTOM_ID:
        message = (
            f"got a custom_id of {len(line.custom_id)} characters, expected at most {MAX_CUSTOM_ID}"
        )
        return [LineError("custom_id_too_long", message, number, "custom_id")]
    if line.custom_id in seen:
        message = (
            f"got duplicate custom_id {value_text(line.custom_id)}, first used in line "
            f"{seen[line.custom_id]}"
        )
        return [LineError("duplicate_custom_id", message, number, "custom_id")]
    seen[line.custom_id] = number
    return []


def read_line(path: Path, span: LineSpan) -> BatchLine:
    """Read a line that `check_file` accepted."""
    with path.open("rb") as file:
        file.seek(span.start)
        return msgspec.json.decode(without_mark(file.read(span.length)), type=BatchLine)


class LocalVideo(CreateVideo, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request for a new video. Its files are relative to the batch file.

    `lora` is a file or folder here, not the name of an offered adapter.
    """

    image: Annotated[str | None, Meta(description="Image file to start from (I2V).")] = None
    video: Annotated[str | None, Meta(description="Video file to continue (V2V).")] = None


def local_request(line: BatchLine, folder: Path, model: str, config: HeliosConfig) -> VideoRequest:
    """Build the request of a line, with its files read from `folder`.

    A seed that is left out is random, as over HTTP. Raises InvalidRequestError.
    """
    body = read_options(LocalVideo, line.body, strict=False)
    check_references(body.image, body.video)
    if body.model not in (None, model):
        raise InvalidRequestError(
            f"got model {body.model!r}, expected one of: {model}", param="model"
        )
    body = with_plain_options(body, config)
    shown = asked_size(body, model)
    size = sampled_size(shown, body, config)
    request = creation(body, line.custom_id, model=model, size=size, shown=shown, tenant="default")
    check_has_end(request, "a batch")
    files = {"width": size.width, "height": size.height}
    request = msgspec.structs.replace(
        request,
        image=None if body.image is None else load_image(folder / body.image, **files),
        video=None if body.video is None else load_video(folder / body.video, **files),
        lora=str((folder / body.lora).absolute()) if isinstance(body.lora, str) else None,
    )
    request.check_inputs()
    return request
