"""The package's logger, and a formatter that keeps user data out of the log.

Prompts, API keys, request bodies and URLs are never logged. The message of an unexpected exception
may contain them (a `KeyError` repeats its key), so only messages of known types are written.
"""

import copy
import logging
import os
import sys
import threading
import time
import traceback
from types import TracebackType
from typing import Literal, TextIO

from helios_serve.errors import HeliosError, InvalidRequestError

logger = logging.getLogger("helios_serve")

SAFE_MESSAGES = (HeliosError, OSError, RuntimeError, MemoryError, ArithmeticError)
"""Exceptions whose messages may be logged: they describe the machine or are written by us.

`InvalidRequestError` is a `HeliosError`, but quotes the request: `DiscreetFormatter` excludes it.
"""

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


LogFormat = Literal["text", "json"]
FORMAT_VARIABLE = "HELIOS_LOG_FORMAT"
"""Environment variable with the server's LogFormat, which worker processes inherit."""
SERVER_LINE = "%(asctime)s %(levelname)s [%(correlation_id)s] %(message)s"


class DiscreetFormatter(logging.Formatter):
    """Formats every traceback in full, but exception messages only of the `SAFE_MESSAGES` types."""

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

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


class StderrHandler(logging.StreamHandler[TextIO]):
    """Writes each record to the current standard error.

    A program may replace and close that while a command runs, as pytest does.
    """

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]  # an attribute of the base class
        return sys.stderr


def show_logs(level: int = logging.INFO) -> None:
    """Write the package's records of `level` and above to standard error.

    They do not propagate to the root logger, so each is written once. In a process of a server, its
    format applies.
    """
    logger.handlers = [stderr_handler(os.environ.get(FORMAT_VARIABLE))]
    logger.setLevel(level)
    logger.propagate = False


def show_server_logs(log_format: LogFormat = "text") -> None:
    """Write records with their time, level and request id, and those of libraries too.

    The format also applies to worker processes that are started later. Uncaught exceptions of
    threads are records as well: Python's default handlers would print their messages in full.
    """
    os.environ[FORMAT_VARIABLE] = log_format
    handler = stderr_handler(log_format)
    logger.handlers = [handler]
    logging.getLogger().handlers = [handler]
    threading.excepthook = log_thread


def log_thread(failed: threading.ExceptHookArgs) -> None:
    name = None if failed.thread is None else failed.thread.name
    logger.error("thread %s failed", name, exc_info=failed.exc_value)


def stderr_handler(log_format: str | None) -> logging.Handler:
    """Return a handler for a server's format, or for the plain lines of a command."""
    handler = StderrHandler()
    if log_format is None:
        handler.setFormatter(DiscreetFormatter("helios-serve: %(message)s"))
        return handler
    from asgi_correlation_id import CorrelationIdFilter

    is_json = log_format == "json"
    handler.setFormatter(json_formatter() if is_json else DiscreetFormatter(SERVER_LINE))
    handler.addFilter(CorrelationIdFilter(default_value="-"))
    return handler


def json_formatter() -> logging.Formatter:
    """Return a formatter for one JSON object a line: time, level, request_id and message."""
    from pythonjsonlogger.json import JsonFormatter

    class DiscreetJsonFormatter(DiscreetFormatter, JsonFormatter):
        """Formats exceptions as `DiscreetFormatter` does."""

    names = {"asctime": "time", "levelname": "level", "correlation_id": "request_id"}
    return DiscreetJsonFormatter(SERVER_LINE, rename_fields=names)
