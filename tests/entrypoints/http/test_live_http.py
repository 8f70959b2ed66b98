"""Live responses for HTTP/1.0, HEAD and other unusual requests."""

import socket
from typing import Any
from urllib.parse import urlsplit

import httpx2 as httpx
import pytest

from tests.support.edge_server import everything
from tests.support.server import Server


def raw(server: Server, request: str) -> tuple[bytes, bytes]:
    """Return the header and the body of the response, up to the end of the connection."""
    address = urlsplit(server.url)
    with socket.create_connection((str(address.hostname), address.port or 80)) as connection:
        connection.settimeout(60)
        connection.sendall(request.encode())
        head, _, body = everything(connection).partition(b"\r\n\r\n")
    return head.lower(), body


@pytest.mark.parametrize("part", ["stream", "events", "content", "hls/index.m3u8", "hls/0.m4s"])
def test_http_1_0_gets_the_bytes_alone(
    server: Server, http: httpx.Client, finished: Any, part: str
) -> None:
    path = f"/v1/videos/{finished.id}/{part}"
    head, body = raw(server, f"GET {path} HTTP/1.0\r\n\r\n")
    assert head.startswith(b"http/1.1 200 ")
    assert b"transfer-encoding" not in head
    assert body == http.get(path).content


@pytest.mark.parametrize("part", ["stream", "events", "content", "hls/index.m3u8", "hls/0.m4s"])
def test_head_answers_at_once_with_the_header(http: httpx.Client, finished: Any, part: str) -> None:
    path = f"/v1/videos/{finished.id}/{part}"
    head, get = http.head(path), http.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]
    assert head.headers.get("content-length") == get.headers.get("content-length")


def test_head_does_not_wait_for_a_video_in_the_making(http: httpx.Client) -> None:
    body = {"prompt": "waves", "num_frames": 3300, "size": "64x64"}
    video = http.post("/v1/videos", json=body).json()["id"]
    for part in ("stream", "events"):
        assert http.head(f"/v1/videos/{video}/{part}").status_code == 200
    assert http.get(f"/v1/videos/{video}").json()["status"] in ("queued", "in_progress")
    http.delete(f"/v1/videos/{video}")


@pytest.mark.parametrize("part", ["stream", "events", "hls/0.m4s"])
@pytest.mark.parametrize("header", ["bytes=0-9", "chunks=1", "bytes=9-1", "x"])
def test_a_range_of_what_has_no_ranges_is_ignored(
    http: httpx.Client, finished: Any, part: str, header: str
) -> None:
    path = f"/v1/videos/{finished.id}/{part}"
    answer = http.get(path, headers={"range": header})
    assert (answer.status_code, answer.content) == (200, http.get(path).content)


def test_a_form_may_leave_fields_empty(http: httpx.Client) -> None:
    fields = {"prompt": "waves", "size": "64x64", "num_frames": "33", "seed": "", "fps": ""}
    empty = {"input_reference": ("", b"", "application/octet-stream")}
    for files in (empty, None):
        made = http.post("/v1/videos", data=fields, files=files)
        assert made.status_code == 200, made.text
        http.delete(f"/v1/videos/{made.json()['id']}")
    refused = http.post("/v1/videos", data=fields | {"prompt": ""})
    assert refused.status_code == 400
    assert "prompt" in refused.json()["error"]["message"]
