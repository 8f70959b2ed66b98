"""Malicious requests: the server answers others meanwhile, and its memory grows by at most four
times what was sent.
"""

import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

import httpx2 as httpx
import psutil
import pytest

from tests.support.server import Server

MIB = 1 << 20
JSON = "application/json"
FORM = "multipart/form-data; boundary=b"
URLENCODED = "application/x-www-form-urlencoded"
LATENCY = 0.25
"""Seconds within which the server answers others."""
SLACK = 24 * MIB
"""Memory of threads and caches that the first large request takes, whatever its size."""


def part(name: str, value: bytes, extra: str = "") -> bytes:
    head = f'--b\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n'
    return head.encode() + value + b"\r\n"


def chunked(size: int, piece: bytes) -> bytes:
    one = b"%x\r\n%s\r\n" % (len(piece), piece)
    return one * (size // len(one))


def filled(unit: bytes, size: int) -> bytes:
    return unit * (size // len(unit))


BODIES: dict[str, Callable[[], tuple[str, bytes]]] = {
    "lists": lambda: (JSON, b'{"prompt":"x","user":[' + filled(b"[],", 8 * MIB) + b"1]}"),
    "objects": lambda: (JSON, b'{"prompt":"x","user":[' + filled(b'{"":[]},', 8 * MIB) + b"1]}"),
    "strings": lambda: (JSON, b'{"prompt":"x","user":[' + filled(b'"",', MIB) + b"1]}"),
    "depth": lambda: (JSON, b'{"user":' + filled(b"[", 8 * MIB)),
    "escaped quotes": lambda: (JSON, b'{"user":"' + filled(b'\\"', 8 * MIB)),
    "a long prompt": lambda: (JSON, b'{"prompt":"' + filled(b"a", 16 * MIB) + b'"}'),
    "a data: URL of escapes": lambda: (
        JSON,
        b'{"prompt":"x","size":"64x64","input_reference":{"image_url":"data:,'
        + filled(b"%41", 16 * MIB)
        + b'"}}',
    ),
    "a data: URL of base64": lambda: (
        JSON,
        b'{"prompt":"x","size":"64x64","input_reference":{"image_url":"data:;base64,'
        + filled(b"AAAA", 32 * MIB)
        + b'"}}',
    ),
    "a data: URL with PHP's slashes": lambda: (
        JSON,
        b'{"prompt":"x","size":"64x64","input_reference":{"image_url":"data:;base64,'
        + filled(b"AA\\/A", 16 * MIB)
        + b'"}}',
    ),
    "a data: URL elsewhere": lambda: (
        JSON,
        b'{"prompt":"x","size":"data:' + filled(b"A", 16 * MIB) + b'"}',
    ),
    "a charset": lambda: (
        f"{FORM}; charset=punycode",
        part("prompt", b"a-" + filled(b"a", MIB // 2)) + b"--b--\r\n",
    ),
    "fields of JSON": lambda: (
        FORM,
        b"".join(part(f"f{index}", filled(b"[[],", MIB // 8)) for index in range(64))
        + b"--b--\r\n",
    ),
    "many fields": lambda: (FORM, filled(part("a", b""), 4 * MIB) + b"--b--\r\n"),
    "almost boundaries": lambda: (
        FORM,
        part("input_reference", filled(b"\r\n--", 4 * MIB), '; filename="a"') + b"--b--\r\n",
    ),
    "an urlencoded form": lambda: (URLENCODED, b"prompt=" + filled(b"%41", MIB - 100)),
    "ampersands": lambda: (URLENCODED, filled(b"&", MIB - 100)),
}


def exchange(server: Server, *pieces: bytes, patience: float = 60) -> bytes:
    """Send the pieces on one connection, and return the answer. The sender takes no time."""
    address = urlsplit(server.url)
    answer = b""
    with socket.create_connection((str(address.hostname), address.port or 80)) as connection:
        connection.settimeout(patience)
        with suppress(OSError):
            for piece in pieces:
                connection.sendall(piece)
            while received := connection.recv(1 << 16):
                answer += received
    return answer


@contextmanager
def bounded(server: Server, sent: int) -> Iterator[None]:
    """Assert in the block that the server answers others, and that its memory is bounded.

    Only CPU time of the server counts as delay, because the machine may be busy.
    """
    address = urlsplit(server.url)
    process = psutil.Process(server.process.pid)
    before = peak = process.memory_info().rss
    slowest = 0.0
    ended = threading.Event()

    def computed() -> float:
        times = process.cpu_times()
        return float(times.user + times.system)

    def watch() -> None:
        nonlocal peak, slowest
        connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=60)
        while not ended.wait(0.01):
            began, used = time.monotonic(), computed()
            connection.request("GET", "/health")
            assert connection.getresponse().read()
            slowest = max(slowest, min(time.monotonic() - began, computed() - used))
            peak = max(peak, process.memory_info().rss)
        connection.close()

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
    assert slowest < LATENCY
    assert peak - before <= 4 * sent + SLACK, f"{(peak - before) / sent:.1f} times what was sent"


@pytest.mark.parametrize("make", BODIES.values(), ids=BODIES)
def test_a_body_stops_nobody(server: Server, make: Callable[[], tuple[str, bytes]]) -> None:
    content_type, body = make()
    head = f"POST /v1/videos HTTP/1.1\r\nHost: x\r\nContent-Type: {content_type}\r\n"
    head += f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    with bounded(server, len(body)):
        answer = exchange(server, head.encode(), body)
    assert re.match(rb"HTTP/1.1 (400|413) ", answer), answer[:500]
    assert len(answer) < 10_000


@pytest.mark.parametrize("path", ["/v1/videos/x/remix", "/v1/videos/x/prompt", "/v1/batches"])
def test_an_order_that_takes_no_media_is_small(http: httpx.Client, path: str) -> None:
    body = json.dumps({"prompt": "data:" + 2 * MIB * "a"}).encode()
    answer = http.post(path, content=body, headers={"content-type": JSON})
    assert answer.status_code == 413
    assert "at most 1048576 bytes" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "line",
    [
        b'{"custom_id":"a","body":{"prompt":[' + filled(b"[],", 8 * MIB) + b"1]}}",
        b'{"custom_id":"' + filled(b"a", 8 * MIB) + b'","body":{}}',
        filled(b"[", 8 * MIB),
    ],
    ids=["lists", "a long name", "depth"],
)
def test_a_line_of_a_batch_stops_nobody(server: Server, http: httpx.Client, line: bytes) -> None:
    with bounded(server, len(line)):
        file = (
            http.post("/v1/files", data={"purpose": "batch"}, files={"file": line})
            .raise_for_status()
            .json()["id"]
        )
        order = {"input_file_id": file, "endpoint": "/v1/videos", "completion_window": "24h"}
        batch = http.post("/v1/batches", json=order).raise_for_status().json()["id"]
        until = time.monotonic() + 30
        while (found := http.get(f"/v1/batches/{batch}").json())["status"] != "failed":
            assert time.monotonic() < until, found
            time.sleep(0.05)
    assert found["errors"]["data"][0]["code"] == "invalid_json_line"
    http.delete(f"/v1/files/{file}")


HEAD = b"POST /v1/videos HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
STREAMS = {
    "an endless header": b"GET /health HTTP/1.1\r\nHost: x\r\nx: " + filled(b"y", 8 * MIB),
    "countless headers": b"GET /health HTTP/1.1\r\nHost: x\r\n" + filled(b"x: y\r\n", 8 * MIB),
    "an endless path": b"GET /" + filled(b"y", 8 * MIB),
    "a header of empty lines": filled(b"\r\n", 8 * MIB),
    "a body in single bytes": HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(4 * MIB, b" "),
    "a body in small chunks": HEAD
    + b"Transfer-Encoding: chunked\r\n\r\n"
    + chunked(16 * MIB, bytes(64)),
    "a chunk with an endless size": HEAD
    + b"Transfer-Encoding: chunked\r\n\r\n"
    + filled(b"0", MIB),
    "requests in one piece": filled(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", MIB // 4),
}


@pytest.mark.parametrize("data", STREAMS.values(), ids=STREAMS)
def test_a_connection_stops_nobody(server: Server, data: bytes) -> None:
    with bounded(server, len(data)):
        exchange(server, data, patience=2)
