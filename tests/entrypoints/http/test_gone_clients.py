"""Clients that disconnect in the middle of a request, on real sockets."""

import socket
import time
from pathlib import Path

import httpx2 as httpx
import psutil

from tests.support.server import Server


def test_a_client_that_goes_before_it_has_said_all_is_no_fault(
    server: Server, http: httpx.Client, log: Path
) -> None:
    """The client declares a longer body than it sends."""
    host, port = server.url.removeprefix("http://").split(":")
    before = log.read_text()
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        head = "POST /v1/videos HTTP/1.1\r\nhost: here\r\ncontent-type: application/json\r\n"
        wait = "content-length: 100\r\nexpect: 100-continue\r\n\r\n"
        connection.sendall(f"{head}{wait}".encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 100")  # the server waits for the body
        connection.sendall(b"{")
        own = connection.getsockname()[1]
    wait_until_closed(server.process.pid, own)
    assert http.get("/liveness").status_code == 200
    added = log.read_text().removeprefix(before).splitlines()
    assert [line for line in added if " INFO " not in line] == []


def wait_until_closed(pid: int, port: int) -> None:
    """Until a process has closed its connection to a port, upon which it has done all for it."""
    deadline = time.monotonic() + 60
    while any(
        item.raddr and item.raddr.port == port
        for item in psutil.Process(pid).net_connections("tcp")
    ):
        assert time.monotonic() < deadline
        time.sleep(0.01)
