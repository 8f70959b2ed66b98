"""Parsing of forms, with limits on the number and the size of their parts.

A form is decoded as UTF-8, whatever charset the client declares: some of Python's codecs take hours
for megabytes.
"""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import SpooledTemporaryFile, gettempdir
from typing import BinaryIO, NamedTuple, cast

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from helios_serve.service.errors import ApiError
from helios_serve.service.json_text import too_large
from helios_serve.service.media.data_urls import unquote_text
from helios_serve.service.media.uploads import Spool, Upload
from helios_serve.store.files import storage_errors

MAX_FIELDS, MAX_FILES = 200, 4
MAX_FIELD = 64 << 20
"""Maximum size in bytes of a reference as text: a data: URL."""
MAX_PART_HEADERS = 16
MAX_CONTENT_TYPE = 1024
"""Maximum length of the header content-type: parsing it takes quadratic time."""
MEMORY = 1 << 20
"""Bytes of a file that are kept in memory; a larger one is written to disk."""
SLICE = 64 << 10
"""Bytes parsed at a time. A longer form is parsed outside of the event loop's thread."""
REFERENCE = re.compile(r"(input_reference|video)(\[(image_url|video_url)\])?")
"""Fields that may contain a data: URL, which does not count against the limit of text."""


EXTENDED_NAME = re.compile(rb";\s*filename\*\s*=", re.IGNORECASE)
"""A file name in RFC 5987's notation, which some clients send in place of `filename`."""


class FormField(NamedTuple):
    """A field of a form: its name, and its text (UTF-8) or its file."""

    name: str
    value: bytes | Upload


class FormParts:
    """Collects the parts of a multipart form. Files are spooled to disk.

    Raises ApiError 400 for an invalid form, and 413 for one with too many parts, or whose texts
    have more than `most` bytes besides references. Raises StorageError if files have no room.
    """

    def __init__(self, boundary: bytes, most: int, spool: Spool) -> None:
        self.most = most
        self.spool = spool
        self.fields: list[FormField] = []
        self.is_complete = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._add_header_name,
                "on_header_value": self._add_header_value,
                "on_header_end": self._end_header,
                "on_headers_finished": self._end_headers,
                "on_part_data": self._add_data,
                "on_part_end": self._end,
                "on_end": self._complete,
            },
            max_header_count=MAX_PART_HEADERS,
        )
        self._text_left = most
        self._reference_left = MAX_FIELD
        self._num_files = self._num_texts = 0
        self._file_bytes = self._checked_bytes = 0
        self._begin()

    def write(self, data: bytes) -> None:
        """Parse the next piece of the body."""
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise invalid_form(f"form is not valid: {error}") from error

    def close(self) -> None:
        """Delete the files."""
        for field in self.fields:
            if isinstance(field.value, Upload):
                field.value.file.close()
        if self._file is not None:
            self._file.close()

    def _begin(self) -> None:
        self._header_name = self._header_value = b""
        self._headers: dict[bytes, bytes] = {}
        self._name, self._filename = "", ""
        self._text = bytearray()
        self._file: BinaryIO | None = None

    def _add_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _add_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        self._headers[self._header_name.lower()] = self._header_value
        self._header_name = self._header_value = b""

    def _end_headers(self) -> None:
        disposition = self._headers.get(b"content-disposition", b"")
        _, options = parse_options_header(disposition)
        if EXTENDED_NAME.search(disposition):
            options.setdefault(b"filename", b"upload")
        if b"name" not in options:
            raise invalid_form("got a part without a name, expected content-disposition with one")
        self._name = decoded(options[b"name"], "the name of a field")
        if b"filename" not in options:
            self._num_texts += 1
        else:
            self._num_files += 1
            self._filename = decoded(options[b"filename"], "the name of a file")
            folder = None if self.spool.folder is None else str(self.spool.folder)
            self._file = cast(BinaryIO, SpooledTemporaryFile(MEMORY, dir=folder))  # noqa: SIM115
        if self._num_texts > MAX_FIELDS or self._num_files > MAX_FILES:
            raise ApiError(
                413,
                f"got too many fields, expected at most {MAX_FIELDS} fields and {MAX_FILES} files",
                code="too_large",
            )

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        if self._file is not None:
            self._write(self._file, data[start:end])
            return
        if REFERENCE.fullmatch(self._name):
            self._reference_left -= end - start
        else:
            self._text_left -= end - start
        if self._reference_left < 0:
            raise ApiError(
                413,
                f"form field {self._name!r} is too large, expected at most {MAX_FIELD} bytes; "
                "upload a file",
                code="too_large",
            )
        if self._text_left < 0:
            raise too_large(self.most)
        self._text += data[start:end]

    def _write(self, file: BinaryIO, data: bytes) -> None:
        """Write a piece of a file. Disk space is checked once for every `MEMORY` bytes."""
        self._file_bytes += len(data)
        if self._file_bytes > self._checked_bytes + MEMORY:
            self.spool.check_room(self._file_bytes)
            self._checked_bytes = self._file_bytes
        with storage_errors("write an upload to", self.spool.folder or Path(gettempdir())):
            file.write(data)

    def _end(self) -> None:
        value: bytes | Upload = bytes(self._text)
        if self._file is not None:
            self._file.seek(0)
            kind = self._headers.get(b"content-type")
            declared = None if kind is None else kind.decode("latin-1")
            value = Upload(self._file, self._filename, declared)
        self.fields.append(FormField(self._name, value))
        self._file = None
        self._text = bytearray()

    def _complete(self) -> None:
        self.is_complete = True


async def read_multipart(
    pieces: AsyncIterator[bytes], content_type: str, most: int, spool: Spool | None = None
) -> list[FormField]:
    """Return the fields of a multipart form. Raises ApiError or StorageError, as `FormParts`."""
    if len(content_type) > MAX_CONTENT_TYPE:
        raise invalid_form(
            f"got a content-type of {len(content_type)} characters, expected at most "
            f"{MAX_CONTENT_TYPE}"
        )
    _, parameters = parse_options_header(content_type)
    boundary = parameters.get(b"boundary")
    if not boundary:
        raise invalid_form("got multipart/form-data without a boundary, expected one")
    try:
        parts = FormParts(boundary, most, spool or Spool())
    except FormParserError as error:
        raise invalid_form(f"got an invalid boundary: {error}") from error
    try:
        waiting = bytearray()
        async for piece in pieces:
            waiting += piece
            while len(waiting) >= SLICE:
                await asyncio.to_thread(parts.write, bytes(waiting[:SLICE]))
                del waiting[:SLICE]
        parts.write(bytes(waiting))
        if not parts.is_complete:
            raise invalid_form("form ends before its closing boundary")
    except BaseException:
        parts.close()
        raise
    return parts.fields


def parse_urlencoded(body: bytes | bytearray) -> list[FormField]:
    """Return the fields of a form in application/x-www-form-urlencoded.

    Raises ApiError 400 for text that is not UTF-8, and 413 for too many fields.
    """
    if body.count(b"&") >= MAX_FIELDS:
        raise ApiError(413, f"got too many fields, expected at most {MAX_FIELDS}", code="too_large")
    fields = []
    for part in bytes(body).split(b"&"):
        name, _, value = (unquote_text(text.replace(b"+", b" ")) for text in part.partition(b"="))
        if part:
            fields.append(FormField(decoded(name, "the name of a field"), value))
    return fields


def decoded(text: bytes | bytearray, what: str) -> str:
    """Decode UTF-8. Raises ApiError 400, which says `what` is invalid."""
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise ApiError(400, f"{what} is not valid UTF-8", code="invalid_encoding") from error


def invalid_form(message: str) -> ApiError:
    return ApiError(400, message, code="invalid_request")
