"""The package's logger, and a formatter that keeps user data out of the log.

Prompts, API keys, request bodies and URLs are never logged. The message of an unexpected exception
may contain them (a `KeyError` repeats its key), so only messages of known types are written.
"""

import copy
import logging
import sys
import threading
import traceback
from types import TracebackType

from helios_serve.errors import HeliosError, InvalidRequestError

logger = logging.getLogger("helios_serve")

SAFE_MESSAGES = (HeliosError, OSError, RuntimeError, MemoryError, ArithmeticError)
"""Exceptions whose messages may be logged: they describe the machine or are written by us.

`InvalidRequestError` is a `HeliosError`, but quotes the request: `DiscreetFormatter` excludes it.
"""

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class DiscreetFormatter(logging.Formatter):
    """Formats every traceback in full, but exception messages only of the `SAFE_MESSAGES` types."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record. asyncio's keep one line only: the next ones repeat the task's error."""
        if record.name == "asyncio":
            record = copy.copy(record)
            record.msg, record.args = record.getMessage().partition("\n")[0], ()
        return super().format(record)

    def formatException(self, ei: ExcInfo) -> str:
        lines: list[str] = []
        error = ei[1]
        while error is not None:
            name = type(error).__name__
            is_safe = isinstance(error, SAFE_MESSAGES) and not isinstance(
                error, InvalidRequestError
            )
            summary = f"{name}: {error}" if is_safe else name
            frames = traceback.format_tb(error.__traceback__)
            lines = [*frames, f"{summary}\n", *(["which led to\n"] if lines else []), *lines]
            error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        return "".join(lines).rstrip()


def show_logs(level: int = logging.INFO) -> None:
    """Write the package's records of `level` and above to standard error.

    They do not propagate to the root logger, so each is written once.
    """
    logger.handlers = [stderr_handler()]
    logger.setLevel(level)
    logger.propagate = False


def show_all_logs() -> None:
    """Also write warnings of libraries and uncaught exceptions of threads to standard error.

    Python's default handlers would print exception messages in full.
    """
    logging.getLogger().handlers = [stderr_handler()]
    threading.excepthook = log_thread


def log_thread(failed: threading.ExceptHookArgs) -> None:
    name = None if failed.thread is None else failed.thread.name
    logger.error("thread %s failed", name, exc_info=failed.exc_value)


def stderr_handler() -> logging.Handler:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(DiscreetFormatter("helios-serve: %(message)s"))
    return handler
