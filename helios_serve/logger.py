"""Log records of this package; commands show them as single lines.

Nothing of what users send is logged: no prompts, keys, bodies or URLs. What an unexpected exception
says may repeat it, as a KeyError repeats its key, so only messages of known kinds are shown.
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
"""Errors whose messages are about the machine, or are our own; not those about a request."""

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class DiscreetFormatter(logging.Formatter):
    """Shows where an exception was raised, and what it says only if it is of a known kind."""

    def format(self, record: logging.LogRecord) -> str:
        """asyncio describes a task that failed in further lines, with what it raised."""
        if record.name == "asyncio":
            record = copy.copy(record)
            record.msg, record.args = record.getMessage().partition("\n")[0], ()
        return super().format(record)

    def formatException(self, ei: ExcInfo) -> str:
        lines: list[str] = []
        error = ei[1]
        while error is not None:
            name = type(error).__name__
            is_told = isinstance(error, SAFE_MESSAGES) and not isinstance(
                error, InvalidRequestError
            )
            said = f"{name}: {error}" if is_told else name
            frames = traceback.format_tb(error.__traceback__)
            lines = [*frames, f"{said}\n", *(["which led to\n"] if lines else []), *lines]
            error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        return "".join(lines).rstrip()


def show_logs(level: int = logging.INFO) -> None:
    """Write records of `level` and above to standard error, once each."""
    logger.handlers = [stderr_handler()]
    logger.setLevel(level)
    logger.propagate = False


def show_all_logs() -> None:
    """Show warnings of libraries in the same way: those that Python shows by itself say all."""
    logging.getLogger().handlers = [stderr_handler()]
    threading.excepthook = log_thread


def log_thread(failed: threading.ExceptHookArgs) -> None:
    name = None if failed.thread is None else failed.thread.name
    logger.error("thread %s failed", name, exc_info=failed.exc_value)


def stderr_handler() -> logging.Handler:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(DiscreetFormatter("helios-serve: %(message)s"))
    return handler
