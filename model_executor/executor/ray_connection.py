"""This process's connection to a Ray cluster, shared by its executors."""

import os
import sys
import tempfile
import threading
from typing import Any

import ray

ALONE: dict[str, Any] = {"include_dashboard": False, "_node_ip_address": "127.0.0.2"}
"""Keeps a cluster that we start local. Ray would replace 127.0.0.1 by the outer address."""


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
        """Connect to the cluster at `address`, or start one on this machine if it is None."""
        with self._lock:
            if not ray.is_initialized():
                self._connect(address)
            self._users.add(user)

    def close(self, user: object) -> None:
        with self._lock:
            self._users.discard(user)
            if self._scratch is not None and not self._users:
                ray.shutdown()
                self._scratch.cleanup()
                self._scratch = None

    def _connect(self, address: str | None) -> None:
        # By default workers import from this process's working directory first.
        self._scratch = tempfile.TemporaryDirectory(prefix="helios-ray-")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(
            address=address or "local",
            runtime_env={"working_dir": self._scratch.name},
            log_to_driver=False,
            **(ALONE if address is None and sys.platform == "linux" else {}),
        )


CONNECTION = RayConnection()
