"""Connections: HTTP of real clients, deadlines, and limits on their number."""

import json
import re
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import h11
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from helios_serve.entrypoints.http.connections import (
    FEWEST_CONNECTIONS,
    Connections,
    most_connections,
)
from helios_serve.errors import InvalidRequestError
from helios_serve.options.edge import EdgeOptions
from tests.support.edge_server import Edge, everything, running_edge, wait_for

QUICK = EdgeOptions(header_timeout=1, body_timeout=1, keep_alive_timeout=1, max_connections=16)
LINE = b"POST /v1/batches HTTP/1.1\r\nHost: x\r\n"
JSON = b"Content-Type: application/json\r\n"


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    """A server that never closes a connection by itself during a test."""
    with running_edge(tmp_path_factory.mktemp("edge") / "data") as running:
        yield running


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    """A server with short deadlines."""
    with running_edge(tmp_path_factory.mktemp("edge") / "data", QUICK) as running:
        yield running


def answers(edge: Edge, *pieces: bytes, number: int = 1) -> list[tuple[int, bytes]]:
    """Return the status and the body of each response on one connection."""
    client, found = h11.Connection(h11.CLIENT), []
    with edge.connect() as connection:
        for piece in pieces:
            connection.sendall(piece)
        for _ in range(number):
            client.send(h11.Request(method="POST", target="/", headers=[("host", "x")]))
            client.send(h11.EndOfMessage())
            status, body = 0, b""
            while not isinstance(event := client.next_event(), h11.EndOfMessage):
                if event is h11.NEED_DATA:
                    client.receive_data(connection.recv(1 << 16))
                elif isinstance(event, h11.Response):
                    status = event.status_code
                elif isinstance(event, h11.Data):
                    body += event.data
            found.append((status, bytes(body)))
            if client.our_state is h11.DONE and client.their_state is h11.DONE:
                client.start_next_cycle()
    return found


def error_in(body: bytes) -> str:
    message: str = json.loads(body)["error"]["message"]
    return message


@pytest.mark.parametrize(
    "offer",
    [
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAA\r\n",
        b"Connection: upgrade\r\nUpgrade: h2c\r\n",
        b"Connection: keep-alive, Upgrade\r\nUpgrade: TLS/1.0, HTTP/2.0\r\n",
        b"Connection: Upgrade\r\nUpgrade: foo/2\r\nUpgrade: bar\r\n",
        b"Upgrade: websocket\r\n",
        b"Connection: Upgrade\r\n",
    ],
)
@pytest.mark.parametrize("is_chunked", [False, True])
def test_an_offer_to_upgrade_is_ignored_and_the_body_read(
    edge: Edge, offer: bytes, is_chunked: bool
) -> None:
    """Twice on one connection, as the JDK's client does."""
    body = b'{"input_file_id": "none", "endpoint": "/v1/videos", "completion_window": "24h"}'
    if is_chunked:
        framed = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    else:
        framed = b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    one = LINE + JSON + offer + framed
    for pieces in ((one, one), (one[:-60], one[-60:], one[:80], one[80:])):
        for status, answer in answers(edge, *pieces, number=2):
            assert (status, error_in(answer)) == (404, "file 'none' not found")


@pytest.mark.parametrize("path", ["/v1/models", "/v1/videos", "/nothing", "/playground/app.js"])
@pytest.mark.parametrize("header", [b"", b"Host: x\r\n", b"Connection: keep-alive\r\n"])
def test_http_1_0_gets_no_chunks(edge: Edge, path: str, header: bytes) -> None:
    answer = edge.exchange(f"GET {path} HTTP/1.0\r\n".encode() + header + b"\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    length = re.search(rb"content-length: (\d+)", head)
    assert length is not None
    assert len(body) == int(length[1])


TOO_LARGE = b"Content-Type: %s\r\nContent-Length: %d\r\n%s\r\n"
FORM = b"multipart/form-data; boundary=b"


@pytest.mark.parametrize(
    ("path", "content_type", "length"),
    [
        (b"/v1/videos", FORM, 99_000_000_000),
        (b"/v1/files", FORM, (512 << 20) + 1),
        (b"/v1/videos", b"application/json", (64 << 20) + 1),
        (b"/v1/videos", b"application/x-www-form-urlencoded", (1 << 20) + 1),
        (b"/v1/batches", b"application/json", (1 << 20) + 1),
        (b"/v1/videos/x/remix", FORM, (1 << 20) + 1),
        (b"/nothing", b"text/plain", 99_000_000_000),
    ],
)
def test_a_declared_length_beyond_the_limit_is_refused_before_the_body(
    edge: Edge, path: bytes, content_type: bytes, length: int
) -> None:
    line = b"POST %s HTTP/1.1\r\nHost: x\r\n" % path
    head = line + TOO_LARGE % (content_type, length, b"Expect: 100-continue\r\n")
    answer = edge.exchange(head)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer.lower()


@pytest.mark.parametrize("more", [b"", b"Connection: close\r\n"])
def test_a_client_that_sends_all_of_it_sees_the_refusal(edge: Edge, more: bytes) -> None:
    size = 8 << 20
    head = b"POST /v1/batches HTTP/1.1\r\nHost: x\r\n" + TOO_LARGE % (b"text/json", size, more)
    ((status, answer),) = answers(edge, head, bytes(size))
    assert (status, error_in(answer)[:24]) == (413, "body is too large, expec")
    if not more:
        next_one = LINE + JSON + b"Content-Length: 2\r\n\r\n{}"
        assert answers(edge, head, bytes(size), next_one, number=2)[1][0] == 400


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_body_may_have_many_lines(edge: Edge, end: bytes) -> None:
    """It arrives together with its header, whose lines are counted."""
    fields = {"input_file_id": "none", "endpoint": "/v1/videos", "completion_window": "24h"}
    body = json.dumps(fields).encode().replace(b" ", 300 * end)
    head = LINE + JSON + b"Content-Length: %d\r\n\r\n" % len(body)
    ((status, answer),) = answers(edge, head.replace(b"\r\n", end) + body)
    assert (status, error_in(answer)) == (404, "file 'none' not found")


def test_a_body_that_is_wanted_is_continued(edge: Edge) -> None:
    with edge.connect() as connection:
        head = LINE + JSON + b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\n"
        connection.sendall(head)
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"{}")
        assert connection.recv(1000).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
        (LINE + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (LINE + b"Content-Length: -1\r\n\r\n", 400),
        (LINE + b"Transfer-Encoding: gzip\r\n\r\n", 501),
        (b"GET / HTTP/1.1\r\nHost: x\r\nx: " + bytes(40_000).replace(b"\0", b"y"), 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + 200 * b"x: y\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + 200 * b"x: y\r\n" + b"\r\n", 431),
        (b"GET /" + 40_000 * b"y", 431),
    ],
)
def test_what_is_not_http_is_refused_in_the_api_s_envelope(
    edge: Edge, request_: bytes, status: int
) -> None:
    answer = edge.exchange(request_)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), head
    assert error_in(body)


@pytest.mark.parametrize("order", [1, -1])
def test_a_request_with_two_lengths_is_refused_and_what_follows_not_read(
    edge: Edge, order: int
) -> None:
    """A proxy that counts bytes takes the second request for a part of the body."""
    lengths = [b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n"][::order]
    inner = b"0\r\n\r\nGET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"
    answer = edge.exchange(LINE + JSON + b"".join(lengths) + b"\r\n" + inner)
    assert answer.count(b"HTTP/1.1") == 1
    assert b"HTTP/1.1 400" in answer
    assert b"both Content-Length and Transfer-Encoding" in answer


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate, gzip"])
def test_a_compressed_body_is_named(edge: Edge, coding: str) -> None:
    head = LINE + JSON + f"Content-Encoding: {coding}\r\nContent-Length: 2\r\n\r\n{{}}".encode()
    ((status, answer),) = answers(edge, head)
    assert (status, error_in(answer)) == (415, f"got content-encoding '{coding}', expected none")


@pytest.mark.parametrize(
    "kind", ["application/json; charset=utf-16", "Application/JSON", "text/json"]
)
def test_json_is_utf_8_whatever_is_declared(edge: Edge, kind: str) -> None:
    for mark in (b"", b"\xef\xbb\xbf"):
        fields = {"input_file_id": "é", "endpoint": "/v1/videos", "completion_window": "24h"}
        body = mark + json.dumps(fields, ensure_ascii=False).encode()
        head = f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        ((status, answer),) = answers(edge, LINE + head + body)
        assert (status, error_in(answer)) == (404, "file 'é' not found")


def test_head_of_a_wrong_method_names_the_right_ones(edge: Edge) -> None:
    answer = edge.exchange(b"PUT /v1/videos HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 405 ")
    assert re.search(rb"\r\nallow: (GET|POST)", answer)


def test_a_request_that_does_not_arrive_is_timed_out(quick: Edge) -> None:
    slow: list[bytes] = [
        b"GET /v1/videos HTTP/1.1\r\n",
        b"GET",
        LINE + JSON + b"Content-Length: 10\r\n\r\n{",
        LINE + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab",
        b"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\nContent-Length: 9\r\n\r\n-"
        % FORM,
    ]
    with ExitStack() as opened:
        connections = [opened.enter_context(quick.connect()) for _ in slow]
        for connection, data in zip(connections, slow, strict=True):
            connection.sendall(data)
        for connection in connections:
            answer = everything(connection)
            assert answer.startswith(b"HTTP/1.1 408 "), answer
            assert b"timed out" in answer


def seconds_until_closed(connection: socket.socket, piece: bytes) -> float:
    """Send a piece again and again until the server has closed the connection."""
    began = time.monotonic()
    with suppress(OSError):
        while time.monotonic() - began < 15:
            connection.sendall(piece)
            time.sleep(0.05)
    return time.monotonic() - began


def test_bytes_that_trickle_in_do_not_extend_the_deadline(quick: Edge) -> None:
    """Of a header, of a body with a length, and of one in chunks, on three connections at once."""
    trickles = (
        (b"GET / HTTP/1.1\r\nHost: x\r\nx: ", b"y"),
        (LINE + JSON + b"Content-Length: 100000\r\n\r\n", b" "),
        (LINE + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    )
    with ExitStack() as opened:
        threads = opened.enter_context(ThreadPoolExecutor(len(trickles)))
        ends = []
        for first, piece in trickles:
            connection = opened.enter_context(quick.connect())
            connection.sendall(first)
            ends.append(threads.submit(seconds_until_closed, connection, piece))
        assert all(end.result() < 10 for end in ends)


@pytest.mark.parametrize("first", [b"", b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"])
def test_an_idle_connection_is_closed_without_a_word(quick: Edge, first: bytes) -> None:
    with quick.connect() as connection:
        connection.sendall(first)
        answer = everything(connection)
    assert answer.count(b"HTTP/1.1") == bool(first)


def test_strangers_do_not_keep_out_clients_with_a_key(tmp_path: Path) -> None:
    """200 connections send half a request each, to a server that allows 16."""
    options = EdgeOptions(max_connections=16)
    with running_edge(tmp_path / "data", options) as edge, ExitStack() as opened:
        secret = edge.keys.create("acme").secret.encode()
        key = b"Authorization: Bearer " + secret + b"\r\n"
        request = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n" + key + b"\r\n"
        early = opened.enter_context(edge.connect())
        early.sendall(request)
        assert early.recv(10_000).startswith(b"HTTP/1.1 200 ")
        strangers = []
        for index in range(200):
            strangers.append(opened.enter_context(edge.connect()))
            half = b"GET /v1/videos HTTP/1.1\r\n" if index % 2 else b""
            strangers[-1].sendall(half)
            if index % 50 == 0:
                late = opened.enter_context(edge.connect())
                late.sendall(request)
                assert late.recv(10_000).startswith(b"HTTP/1.1 200 ")
        wait_for(lambda: len(edge.config.connections.strangers) <= 8)
        early.sendall(request)
        assert early.recv(10_000).startswith(b"HTTP/1.1 200 ")
        assert len(edge.config.connections.known) == 5


class Idle:
    """A client of `Connections`."""

    def __init__(self, is_idle: bool = True) -> None:
        self.is_idle = is_idle
        self.is_dropped = False

    def drop(self) -> None:
        self.is_dropped = True


def test_the_oldest_connections_make_room() -> None:
    connections = Connections(8)
    known = [Idle(index % 2 == 0) for index in range(8)]
    for client in known:
        connections.add(client)
        connections.accept(client)
    stranger = Idle()
    connections.add(stranger)
    assert [client.is_dropped for client in known] == [True] + 7 * [False]
    newer = Idle()
    connections.add(newer)
    assert stranger.is_dropped  # rather than a client with a key
    assert not newer.is_dropped
    connections.accept(newer)
    for client in (*known, newer):
        client.is_idle = False
    connections.add(refused := Idle())
    assert refused.is_dropped  # all others are at work
    connections.discard(newer)
    connections.add(last := Idle())
    assert not last.is_dropped


def test_few_open_files_mean_few_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [100, 100]
    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(limits))
    monkeypatch.setattr("os.listdir", lambda _: 20 * ["x"])
    assert most_connections(2048) == FEWEST_CONNECTIONS
    limits[:] = 256, 256
    assert most_connections(2048) == (256 - 84) // 2
    assert most_connections(10) == 10
    limits[:] = 64, 64
    with pytest.raises(InvalidRequestError, match="limit of 64 open files, expected at least 100"):
        most_connections(2048)
    raised = []
    limits[:] = 64, 4096
    monkeypatch.setattr(resource, "setrlimit", lambda _, limit: raised.append(limit))
    assert most_connections(2048) == (4096 - 84) // 2
    assert raised == [(4096, 4096)]


def test_a_revoked_key_gives_no_more_orders_on_an_open_socket(tmp_path: Path) -> None:
    with running_edge(tmp_path / "data") as edge:
        key = edge.keys.create("acme")
        headers = {"authorization": f"Bearer {key.secret}"}
        address = f"{edge.url.replace('http', 'ws', 1)}/v1/realtime/video"
        with connect(address, additional_headers=headers) as client:
            client.send('{"type": "queue.status"}')
            assert json.loads(client.recv())["type"] == "queue.status"
            edge.keys.revoke(key.key.id)
            time.sleep(0.6)  # as long as a key is cached
            client.send('{"type": "session.start", "prompt": "x"}')
            assert json.loads(client.recv())["code"] == "invalid_api_key"
            with pytest.raises(ConnectionClosed) as closed:
                client.recv()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1008


@pytest.mark.parametrize("has_key", [False, True])
def test_authority_ends_while_a_body_arrives(tmp_path: Path, has_key: bool) -> None:
    """A key is revoked, or the first key created, after the header was accepted."""
    with running_edge(tmp_path / "data") as edge, edge.connect() as connection:
        header = JSON + b"Content-Length: 2\r\n"
        if has_key:
            key = edge.keys.create("acme")
            time.sleep(0.6)
            header += b"Authorization: Bearer " + key.secret.encode() + b"\r\n"
        connection.sendall(LINE + header + b"\r\n")
        wait_for(lambda: edge.config.connections.known)
        if has_key:
            edge.keys.revoke(key.key.id)
        else:
            edge.keys.create("acme")
        time.sleep(0.6)
        connection.sendall(b"{}")
        assert connection.recv(10_000).startswith(b"HTTP/1.1 401 ")


def test_the_limit_of_open_files_is_read_at_the_start() -> None:
    """The real limit, in a process of its own."""
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (160, 160));"
        "from helios_serve.entrypoints.http.connections import most_connections as most;"
        "print(most(2048))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 30 < int(found.stdout) < 48


UPGRADE = (
    b"GET /v1/realtime/video HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\n"
    b"Connection: Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
EMPTY_START, EMPTY_REST = b"\x01\x80\0\0\0\0", b"\x00\x80\0\0\0\0"
"""Empty frames of a text message that does not end."""


def test_a_message_of_endless_empty_frames_is_refused(edge: Edge) -> None:
    with edge.connect() as connection:
        connection.sendall(UPGRADE)
        assert connection.recv(1000).startswith(b"HTTP/1.1 101 ")
        connection.sendall(EMPTY_START + 10_000 * EMPTY_REST)
        frame = everything(connection)
    assert frame[:1] == b"\x88"  # close
    assert int.from_bytes(frame[2:4], "big") == 1009


def test_requests_that_have_not_arrived_do_not_delay_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with ExitStack() as opened, running_edge(tmp_path / "data") as edge:
        for data in (b"", b"GET", LINE + JSON + b"Content-Length: 10\r\n\r\n{"):
            opened.enter_context(edge.connect()).sendall(data)
        wait_for(lambda: edge.config.connections.known)
    assert not [record for record in caplog.records if record.exc_info]
