"""The connection of this process to a Ray cluster."""

import os
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
from typing import Any
from urllib.parse import urlsplit

import ray

from helios_serve.errors import DeviceError

ALONE: dict[str, Any] = {"include_dashboard": False, "_node_ip_address": "127.0.0.2"}
"""Keeps a cluster that we start on loopback. Ray would replace 127.0.0.1 by an outer address."""
TCP_SECONDS = 3.0
PROBE_SECONDS = 18.0
"""How long a cluster may take to accept a connection. Ray itself may wait for minutes."""
REASON_LENGTH = 200
"""Maximum characters of a reason."""
PROBE = """
import sys
import ray
try:
    ray.init(address=sys.argv[1], log_to_driver=False, configure_logging=False)
except BaseException as error:
    print(f"{type(error).__name__}: {error}")
    sys.exit(1)
"""
"""A program that connects as this process will. Ray's core may end a process that tries."""


class RayConnection:
    """The process's only Ray connection, opened for the first user and closed after the last.

    A connection that the process has opened itself is used instead, and is not closed. Any call to
    Ray after the connection was closed would implicitly start a new cluster.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users: set[object] = set()
        self._scratch: tempfile.TemporaryDirectory[str] | None = None

    def open(self, user: object, address: str | None) -> None:
        """Connect to the cluster at `address`, or start one on this machine if it is None.

        Raises DeviceError if no cluster answers there.
        """
        with self._lock:
            if not ray.is_initialized():
                self._connect(address)
            self._users.add(user)

    def close(self, user: object) -> None:
        with self._lock:
            self._users.discard(user)
            if not self._users:
                self._disconnect()

    def _connect(self, address: str | None) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if address is not None:
            check_cluster(address)
        # By default workers import from this process's working directory first.
        self._scratch = tempfile.TemporaryDirectory(prefix="helios-ray-")
        try:
            ray.init(
                address=address or "local",
                runtime_env={"working_dir": self._scratch.name},
                log_to_driver=False,
                **(ALONE if address is None and sys.platform == "linux" else {}),
            )
        except Exception as error:  # Ray raises many kinds
            self._disconnect()
            where = "a Ray cluster on this machine" if address is None else address
            raise DeviceError(f"cannot connect to {where}: {summary(error)}") from error

    def _disconnect(self) -> None:
        if self._scratch is not None:
            ray.shutdown()
            self._scratch.cleanup()
            self._scratch = None


def check_cluster(address: str) -> None:
    """Raise DeviceError unless a Ray cluster accepts connections at `address`.

    `address` is `auto`, HOST:PORT or ray://HOST:PORT. The connection is tried by another process,
    because Ray may wait for minutes, or end the process.
    """
    if ":" in address:
        check_port(address)
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", PROBE, address],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=PROBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        reason = f"it did not accept a connection within {PROBE_SECONDS:g} s"
        raise no_cluster(address, reason) from error
    if done.returncode:
        lines = done.stdout.decode(errors="replace").split()
        reason = " ".join(lines) or f"Ray ended with status {done.returncode}"
        raise no_cluster(address, reason)


def check_port(address: str) -> None:
    """Raise DeviceError unless a server listens at the host and port of `address`."""
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise no_cluster(address, str(error)) from error
    if not host or port is None:
        raise no_cluster(address, "the address lacks a host or a port")
    try:
        socket.create_connection((host, port), timeout=TCP_SECONDS).close()
    except OSError as error:
        raise no_cluster(address, f"{host} port {port}: {error.strerror or error}") from error


def no_cluster(address: str, reason: str) -> DeviceError:
    short = textwrap.shorten(reason, REASON_LENGTH, placeholder=" ...")
    return DeviceError(
        f"got --ray-address {address}, expected the address of a running Ray cluster "
        f"(HOST:PORT, ray://HOST:PORT or auto): {short}"
    )


def summary(error: Exception) -> str:
    """Describe an error in one line."""
    text = " ".join(str(error).split()) or "no reason given"
    return textwrap.shorten(f"{type(error).__name__}: {text}", REASON_LENGTH, placeholder=" ...")
