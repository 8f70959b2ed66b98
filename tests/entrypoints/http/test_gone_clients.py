"""Clients that disconnect in the middle of a request, on real sockets."""

import socket
import time
from pathlib import Path

import httpx2 as httpx

from tests.support.server import Server


def test_a_client_that_goes_before_it_has_said_all_is_no_fault(
    server: Server, http: httpx.Client, log: Path
) -> None:
    """The client declares a longer body than it sends."""
    host, port = server.url.removeprefix("http://").split(":")
    before = log.read_text()
    with socket.create_connection((host, int(port))) as connection:
        head = "POST /v1/videos HTTP/1.1\r\nhost: here\r\ncontent-type: application/json\r\n"
        connection.sendall(f"{head}content-length: 100\r\n\r\n{{".encode())
        time.sleep(0.2)  # until it is read
    time.sleep(0.2)
    assert http.get("/liveness").status_code == 200
    added = log.read_text().removeprefix(before).splitlines()
    assert [line for line in added if " INFO " not in line] == []
