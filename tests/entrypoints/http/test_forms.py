"""Forms of clients and of attackers."""

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Iterator
from tempfile import SpooledTemporaryFile
from typing import Any
from urllib.parse import quote_from_bytes, urlencode

import pytest

from helios_serve.entrypoints.http import forms
from helios_serve.entrypoints.http.bodies import nest
from helios_serve.entrypoints.http.forms import (
    FormField,
    parse_urlencoded,
    read_multipart,
)
from helios_serve.service.errors import ApiError
from helios_serve.service.media.data_urls import decode_data_url, unquote_text
from helios_serve.service.media.uploads import Upload

MOST = 1 << 20
TYPE = "multipart/form-data; boundary=b"


def part(name: str, value: bytes | str, extra: str = "", headers: str = "") -> bytes:
    data = value.encode() if isinstance(value, str) else value
    head = f'--b\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n{headers}\r\n'
    return head.encode() + data + b"\r\n"


@pytest.fixture(autouse=True)
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Closes the files of forms, as the server does after the response."""
    files: list[Any] = []

    def spooled(size: int, dir: str | None = None) -> Any:  # noqa: ARG001
        files.append(SpooledTemporaryFile(size))  # noqa: SIM115
        return files[-1]

    monkeypatch.setattr(forms, "SpooledTemporaryFile", spooled)
    yield
    for file in files:
        file.close()


def read(body: bytes, content_type: str = TYPE, step: int = 1 << 16) -> list[FormField]:
    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), step):
            yield body[start : start + step]

    return asyncio.run(read_multipart(pieces(), content_type, MOST))


def content(field: FormField) -> Any:
    if isinstance(field.value, Upload):
        return field.value.filename, field.value.content_type, field.value.file.read()
    return field.value


@pytest.mark.parametrize("step", [1, 7, 1 << 16])
@pytest.mark.parametrize("size", [0, 1, 70_000, 1_500_000])
def test_fields_and_files_arrive_in_pieces_of_any_size(step: int, size: int) -> None:
    if step == 1 and size > 1:
        size = 2000
    data = bytes(range(256)) * (size // 256 + 1)
    body = (
        part("prompt", "naïve\r\n--b-not")
        + part("file", data[:size], '; filename="é.png"', "Content-Type: image/png\r\n")
        + part("seed", "3")
        + b"--b--\r\n"
    )
    prompt, file, seed = read(body, step=step)
    assert prompt == FormField("prompt", "naïve\r\n--b-not".encode())
    assert (file.name, content(file)) == ("file", ("é.png", "image/png", data[:size]))
    assert seed == FormField("seed", b"3")


@pytest.mark.parametrize("charset", ["punycode", "utf-7", "utf-16", "idna", "rot13", "none"])
def test_a_declared_charset_is_ignored(charset: str) -> None:
    body = part("prompt", "naïve" + 100_000 * "a") + b"--b--\r\n"
    began = time.process_time()
    (field,) = read(body, f"{TYPE}; charset={charset}")
    assert nest([field]) == {"prompt": "naïve" + 100_000 * "a"}
    assert time.process_time() - began < 0.5


@pytest.mark.parametrize(
    ("body", "message", "status"),
    [
        (part("prompt", b"\xff") + b"--b--\r\n", "form field 'prompt' is not valid UTF-8", 400),
        (part("prompt", "a"), "ends before its closing boundary", 400),
        (b"--c\r\n", "form is not valid", 400),
        (b'--b\r\nContent-Disposition: form-data; x="a"\r\n\r\n', "a part without a name", 400),
        (b"--b\r\n" + 20 * b"x: y\r\n" + b"\r\n", "form is not valid", 400),
        (b"--b\r\nx: " + 10_000 * b"y" + b"\r\n\r\n", "form is not valid", 400),
        (300 * part("a", "") + b"--b--\r\n", "at most 200 fields", 413),
        (5 * part("a", "", '; filename="a"') + b"--b--\r\n", "and 4 files", 413),
        (150 * part("a", 10_000 * "x") + b"--b--\r\n", "at most 1048576 bytes", 413),
        (150 * part("a", "[" + 1000 * "[],") + b"--b--\r\n", "at most 50000 values", 400),
        (part("a", 100 * "[") + b"--b--\r\n", "nested too deeply", 400),
    ],
)
def test_forms_that_take_more_than_an_order_needs_are_refused(
    body: bytes, message: str, status: int
) -> None:
    with pytest.raises(ApiError, match=message) as refused:
        nest(read(body))
    assert refused.value.status == status


def test_a_content_type_is_bounded() -> None:
    hostile = f'{TYPE}; x="' + 16_000 * ";"
    began = time.process_time()
    with pytest.raises(ApiError, match="expected at most 1024"):
        read(b"--b--\r\n", hostile)
    assert time.process_time() - began < 0.1
    for other in ("multipart/form-data", f"multipart/form-data; boundary={'b' * 300}"):
        with pytest.raises(ApiError, match="boundary"):
            read(b"--b--\r\n", other)


def test_fields_that_were_left_empty_are_left_out() -> None:
    """As browsers, Swagger and Postman send forms."""
    body = (
        part("prompt", "a dog")
        + part("seed", "")
        + part("steps[]", "")
        + part("video[id]", "")
        + part("input_reference", "", '; filename=""', "Content-Type: application/octet-stream\r\n")
        + b"--b--\r\n"
    )
    assert nest(read(body)) == {"prompt": "a dog"}
    assert nest(parse_urlencoded(b"prompt=a+dog&seed=&size=&&steps%5B%5D=")) == {"prompt": "a dog"}


def test_a_file_without_a_name_or_content_is_a_file() -> None:
    body = (
        part("nameless", "x", '; filename=""')
        + part("empty", "", '; filename="a.png"')
        + part("extended", "y", "; filename*=UTF-8''na%C3%AFve.png")
        + b"--b--\r\n"
    )
    found = nest(read(body))
    assert {name: upload.file.read() for name, upload in found.items()} == {
        "nameless": b"x",
        "empty": b"",
        "extended": b"y",
    }


def test_urlencoded_forms_are_those_that_clients_encode() -> None:
    fields = {"prompt": "a=b&c d+é%\u2028", "video[id]": "video_1", "switches": "[1, 2]"}
    body = urlencode(fields).encode()
    assert nest(parse_urlencoded(body)) == {
        "prompt": fields["prompt"],
        "video": {"id": "video_1"},
        "switches": [1, 2],
    }
    with pytest.raises(ApiError, match="not valid UTF-8"):
        nest(parse_urlencoded(b"prompt=%ff"))
    with pytest.raises(ApiError, match="at most 200"):
        parse_urlencoded(b"&" * 1_000_000)


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 200_001])
def test_escapes_are_decoded_across_pieces(size: int) -> None:
    data = bytes(index * 7 % 256 for index in range(size))
    every = b"".join(b"%%%02x" % byte for byte in data)
    assert (
        unquote_text(every)
        == unquote_text(b"a" + every)[1:]
        == unquote_text(b"ab" + every)[2:]
        == data
    )
    assert b"".join(decode_data_url("data:," + every.decode())) == data
    assert unquote_text(b"%zz" + every + b"%") == b"%zz" + data + b"%"
    quoted = quote_from_bytes(data)
    assert unquote_text(quoted.encode()) == data
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    assert b"".join(decode_data_url(url)) == data
    assert b"".join(decode_data_url(url.replace("=", "%3D").replace("+", "%2b"))) == data


@pytest.mark.parametrize(
    "text", ["AA=A", "AA==AAAA", "A", "AAA", "AA =", "é", "A" * 400_000 + "=" * 4]
)
def test_base64_that_is_not_valid_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="invalid data: URL"):
        b"".join(decode_data_url(f"data:;base64,{text}"))
