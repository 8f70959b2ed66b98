"""Logs of unexpected errors."""

import asyncio
import contextlib
import io
import logging
import sys
import threading
from collections.abc import Callable

import pytest

from helios_serve.errors import InvalidRequestError, StorageError
from helios_serve.logger import (
    FORMAT_VARIABLE,
    DiscreetFormatter,
    log_thread,
    logger,
    show_logs,
    show_server_logs,
)

SECRET = "a dog runs"
NOTHING: dict[str, object] = {}


def logged(fail: Callable[[], object]) -> str:
    try:
        fail()
    except Exception:
        record = logging.LogRecord("x", logging.ERROR, "", 0, "it failed", (), sys.exc_info())
        return DiscreetFormatter("%(message)s").format(record)
    raise AssertionError("nothing was raised")


def chained() -> None:
    try:
        NOTHING[SECRET]
    except KeyError as error:
        raise ValueError(f"no {SECRET}") from error


def refused() -> None:
    raise InvalidRequestError(f"got {SECRET}", param="prompt")


def full() -> None:
    raise StorageError("the disk is full") from OSError(28, "no space")


@pytest.mark.parametrize(
    ("fail", "told"),
    [
        (lambda: NOTHING[SECRET], ["KeyError"]),
        (chained, ["KeyError", "which led to", "ValueError"]),
        (refused, ["InvalidRequestError"]),
        (full, ["OSError: [Errno 28] no space", "which led to", "StorageError: the disk is full"]),
    ],
)
def test_errors_are_told_by_place_and_kind(fail: Callable[[], object], told: list[str]) -> None:
    text = logged(fail)
    assert text.startswith("it failed\n")
    assert f'"{__file__}", line ' in text
    assert SECRET not in text
    places = [text.index(part) for part in told]
    assert places == sorted(places)


@pytest.mark.parametrize("start", ["task", "thread"])
def test_work_that_fails_alone_is_told_in_the_same_way(
    start: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", True)
    monkeypatch.setattr(logger, "level", logger.level)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setenv(FORMAT_VARIABLE, "text")
    show_logs()
    show_server_logs()

    async def lose_a_task() -> None:
        async def fail() -> None:
            raise KeyError(SECRET)

        task = asyncio.create_task(fail())
        await asyncio.wait((task,))

    if start == "task":
        asyncio.run(lose_a_task())
    else:
        try:
            NOTHING[SECRET]
        except KeyError as error:
            log_thread(threading.ExceptHookArgs((KeyError, error, error.__traceback__, None)))
    text = capsys.readouterr().err
    assert "KeyError" in text
    assert SECRET not in text


def test_records_go_to_the_standard_error_of_the_moment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command runs in a program that replaces standard error for a while."""
    monkeypatch.delenv(FORMAT_VARIABLE, raising=False)
    for name, value in {"handlers": [], "propagate": True, "level": logger.level}.items():
        monkeypatch.setattr(logger, name, value)
    with io.StringIO() as replaced, contextlib.redirect_stderr(replaced):
        show_logs()
        logger.info("first")
        assert replaced.getvalue() == "helios-serve: first\n"
    logger.info("second")
    assert capsys.readouterr().err == "helios-serve: second\n"
