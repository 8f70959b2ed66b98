"""A data folder that is held with a lease, by processes on storage whose locks may not hold."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event

import pytest

from helios_serve.errors import StorageError
from helios_serve.store.database import Database
from helios_serve.store.files import sync_folder
from helios_serve.store.lease import (
    FOLDER,
    HOLD,
    LOST,
    LeaseLostError,
    claim,
    kept,
    wait_for_lease,
)
from helios_serve.store.video_store import VideoStore
from tests.support.leaseholder import JOB
from tests.support.scripts import with_tests

SECONDS = 4.0


@contextmanager
def holder(folder: Path, at_loss: str) -> "Iterator[subprocess.Popen[str]]":
    """A process that wants to hold the folder."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.leaseholder", str(folder), str(SECONDS), at_loss],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONSAFEPATH": "1"} | with_tests(),
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def ask(process: "subprocess.Popen[str]", line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()


def said(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize("at_loss", ["end", "stay"])
def test_a_process_that_was_stopped_writes_nothing_after_another_took_over(
    tmp_path: Path, at_loss: str
) -> None:
    """Not even if nothing ends it: the store refuses."""
    with ExitStack() as running:
        first = running.enter_context(holder(tmp_path, at_loss))
        assert said(first) == "held 1"
        ask(first, "0 first")
        assert said(first) == "committed"
        first.send_signal(signal.SIGSTOP)
        started = time.monotonic()
        second = running.enter_context(holder(tmp_path, at_loss))
        assert said(second) == "held 2"
        assert SECONDS < time.monotonic() - started < 10 * SECONDS
        ask(first, "1 late")
        first.send_signal(signal.SIGCONT)
        if at_loss == "stay":
            assert "may not write any more" in said(first)
        else:
            assert first.wait(30) == LOST
        ask(second, "1 second")
        assert said(second) == "committed"
        second.communicate(timeout=30)
    lease = wait_for_lease(tmp_path, SECONDS)
    store = VideoStore(tmp_path, lease=lease)
    assert [store.fragment(JOB, chunk) for chunk in (0, 1)] == [b"first", b"second"]
    store.close()


def test_a_released_folder_is_taken_at_once(tmp_path: Path) -> None:
    first = wait_for_lease(tmp_path, 600)
    first.renew()
    first.release()
    with pytest.raises(LeaseLostError, match="may not write any more"):
        first.check()
    second = wait_for_lease(tmp_path, 600)
    assert (second.token, second.predecessor) == (2, None)


def test_one_of_two_that_wait_takes_the_folder(tmp_path: Path) -> None:
    old = wait_for_lease(tmp_path, 600)
    taken = claim(tmp_path, old.token, 600, None)
    assert taken is not None
    assert claim(tmp_path, old.token, 600, None) is None
    for act in (old.check, old.renew):
        with pytest.raises(LeaseLostError, match="another server has taken"):
            act()
    taken.renew()


def test_a_server_that_cannot_renew_ends_before_another_can_take_over(tmp_path: Path) -> None:
    lease, ended, reasons = wait_for_lease(tmp_path, 1.0), Event(), []
    started = time.monotonic()

    def end(reason: str) -> None:
        reasons.append((time.monotonic() - started, reason))
        ended.set()

    with kept(lease, end):
        (tmp_path / FOLDER).rename(tmp_path / "away")
        assert ended.wait(30)
    seconds, reason = reasons[0]
    assert seconds > HOLD * 1.0 - 0.05
    assert "may not write any more" in reason


def test_a_database_commits_nothing_once_the_lease_is_lost(tmp_path: Path) -> None:
    """Also if it is lost within a transaction."""
    lease = wait_for_lease(tmp_path, 600)
    database = Database(tmp_path / "x", "CREATE TABLE t (a INTEGER);", 1, guard=lease.check)
    database.insert("t", {"a": 1})

    def lose_within() -> None:
        with database.transaction() as run:
            run("INSERT INTO t (a) VALUES (2)")
            claim(tmp_path, lease.token, 600, None)

    with pytest.raises(LeaseLostError):
        lose_within()
    with pytest.raises(LeaseLostError):
        database.insert("t", {"a": 3})
    database.close()
    again = Database(tmp_path / "x", "CREATE TABLE t (a INTEGER);", 1)
    assert [row["a"] for row in again.run("SELECT a FROM t")] == [1]
    again.close()


def test_a_leased_folder_is_refused_without_a_lease(tmp_path: Path) -> None:
    lease = wait_for_lease(tmp_path, 600)
    with pytest.raises(StorageError, match="in use with a lease, by .*: add --data-lease"):
        VideoStore(tmp_path)
    lease.release()
    VideoStore(tmp_path).close()


def test_a_lease_does_not_replace_the_lock_of_a_server_without_one(tmp_path: Path) -> None:
    plain = VideoStore(tmp_path)
    lease = wait_for_lease(tmp_path, 600)
    with pytest.raises(StorageError, match="in use by another server"):
        VideoStore(tmp_path, lease=lease)
    plain.close()


def test_a_lease_that_runs_out_while_it_is_created_is_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Storage may take longer to create the file than the lease lasts."""
    slow = [True]

    def slow_once(folder: Path) -> None:
        if slow:
            slow.pop()
            time.sleep(1.0)
        sync_folder(folder)

    monkeypatch.setattr("helios_serve.store.lease.sync_folder", slow_once)
    lease = wait_for_lease(tmp_path, 1.2)
    assert lease.token == 2
    lease.check()
