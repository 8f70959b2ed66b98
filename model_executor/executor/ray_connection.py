"""This process's connection to a Ray cluster."""

import os
import sys
import tempfile
import threading
from typing import Any

import ray

ALONE: dict[str, Any] = {"include_dashboard": False, "_node_ip_address": "127.0.0.2"}
"""A cluster of our own is for this machine only. Ray takes 127.0.0.1 for its outer address."""


class RayConnection:
    """Made for the first executor and closed behind the last: a process has but one.

    Whatever calls Ray behind that starts a new cluster. A connection that the process had before
    is used, and stays.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users: set[object] = set()
        self._scratch: tempfile.TemporaryDirectory[str] | None = None

    def open(self, user: object, address: str | None) -> None:
        """Connect to the cluster at `address`, or to a new one on this machine."""
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
        # Without a working directory of its own Ray puts ours first on sys.path.
        self._scratch = tempfile.TemporaryDirectory(prefix="helios-ray-")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(
            address=address or "local",
            runtime_env={"working_dir": self._scratch.name},
            log_to_driver=False,
            **(ALONE if address is None and sys.platform == "linux" else {}),
        )


CONNECTION = RayConnection()
