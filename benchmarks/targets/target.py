"""The interface of a server for the load generator."""

from typing import Protocol

from helios_serve.benchmarks.load.clock import LoadClock
from helios_serve.benchmarks.load.request import SessionRequest
from helios_serve.benchmarks.measure.record import SessionRecord


class SessionRefusedError(Exception):
    """The server refused the session: it has no capacity. `code` is its reason."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class SessionFailedError(Exception):
    """The server rejected the session, or failed to finish it. `code` is its reason."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class UnreachableError(SessionFailedError):
    """The server could not be connected to, or the connection was lost."""

    def __init__(self, message: str) -> None:
        super().__init__("connection", message)


class Target(Protocol):
    """A server that runs sessions. Its `clock` gives all times of their records."""

    clock: LoadClock

    async def run(self, request: SessionRequest, record: SessionRecord) -> None:
        """Run a session to its end, and note in `record` what is seen and when.

        Raises SessionRefusedError, SessionFailedError or UnreachableError. The session is abandoned
        if the call is cancelled.
        """

    async def leave(self, record: SessionRecord) -> None:
        """Tell the server that the client of an abandoned session has left. Never raises."""
