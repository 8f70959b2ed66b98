"""Range requests: unknown and malformed ones are ignored (RFC 9110, section 14.2)."""

from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

from helios_serve.entrypoints.http.ranges import StoredFileResponse

DATA = bytes(range(100))


@pytest.fixture
def client(tmp_path: Path) -> TestClient:
    path = tmp_path / "file"
    path.write_bytes(DATA)

    async def file(request: Request) -> Response:  # noqa: ARG001
        return StoredFileResponse(path, media_type="video/mp4")

    return TestClient(Starlette(routes=[Route("/", file, methods=["GET", "POST"])]))


@pytest.mark.parametrize(
    "header",
    [
        "chunks=0-1",
        "seconds=1-2",
        "bytes",
        "bytes=",
        "bytes=,",
        "bytes=-",
        "bytes=a-b",
        "bytes=5-2",
        "bytes=1_0-20",
        "bytes=+1-2",
        "bytes=0-1;2-3",
        "bytes=0-1,x",
        "bytes=1-2-3",
        "bytes=0-1 2-3",
        "bytes=" + ",".join(["0-1"] * 101),
        f"bytes={'9' * 5000}-",
    ],
)
def test_other_ranges_are_ignored(client: TestClient, header: str) -> None:
    answer = client.get("/", headers={"range": header})
    assert (answer.status_code, answer.content) == (200, DATA)
    assert answer.headers["accept-ranges"] == "bytes"


@pytest.mark.parametrize(
    ("header", "expected", "span"),
    [
        ("bytes=0-9", DATA[:10], "0-9"),
        ("Bytes = 10-19", DATA[10:20], "10-19"),
        ("bytes=90-", DATA[90:], "90-99"),
        ("bytes=90-5000", DATA[90:], "90-99"),
        ("bytes=-5", DATA[-5:], "95-99"),
        ("bytes=-5000", DATA, "0-99"),
        ("bytes=200-300, 0-9 ", DATA[:10], "0-9"),
        ("bytes=-0,5-5", DATA[5:6], "5-5"),
    ],
)
def test_a_range_in_the_file_is_sent(
    client: TestClient, header: str, expected: bytes, span: str
) -> None:
    answer = client.get("/", headers={"range": header})
    assert (answer.status_code, answer.content) == (206, expected)
    assert answer.headers["content-range"] == f"bytes {span}/100"
    tag = client.get("/").headers["etag"]
    assert client.get("/", headers={"range": header, "if-range": tag}).status_code == 206
    assert client.get("/", headers={"range": header, "if-range": '"x"'}).content == DATA


@pytest.mark.parametrize("header", ["bytes=100-", "bytes=100-200,300-", "bytes=-0"])
def test_ranges_beyond_the_file_are_refused(client: TestClient, header: str) -> None:
    answer = client.get("/", headers={"range": header})
    assert (answer.status_code, answer.headers["content-range"]) == (416, "bytes */100")


def test_several_ranges_come_in_parts(client: TestClient) -> None:
    answer = client.get("/", headers={"range": "bytes=0-1,500-,98-"})
    assert answer.status_code == 206
    assert answer.headers["content-type"].startswith("multipart/byteranges")
    assert b"bytes 0-1/100" in answer.content
    assert b"bytes 98-99/100" in answer.content


def test_a_client_that_has_the_file_gets_its_headers_only(client: TestClient) -> None:
    whole = client.get("/")
    tag, date = whole.headers["etag"], whole.headers["last-modified"]
    future = "Sat, 28 Nov 2099 00:00:00 GMT"
    for have in (
        {"if-none-match": tag},
        {"if-none-match": f'"x", W/{tag}'},
        {"if-none-match": "*"},
        {"if-modified-since": date},
        {"if-modified-since": future, "range": "bytes=0-9"},
    ):
        for method in ("GET", "HEAD"):
            answer = client.request(method, "/", headers=have)
            assert (answer.status_code, answer.content) == (304, b""), have
            assert answer.headers["etag"] == tag
            assert "content-length" not in answer.headers
    for other in (
        {"if-none-match": '"x"'},
        {"if-none-match": '"x"', "if-modified-since": future},
        {"if-modified-since": "Thu, 01 Jan 1970 00:00:00 GMT"},
        {"if-modified-since": "yesterday"},
    ):
        answer = client.get("/", headers=other)
        assert (answer.status_code, answer.content) == (200, DATA), other
    assert client.post("/", headers={"if-none-match": tag}).content == DATA
