"""Tables and folders that disagree: only files of deleted jobs are deleted."""

import errno
import os
import runpy
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from helios_serve.errors import CapacityError, StorageError
from helios_serve.store.database import Database, Run
from helios_serve.store.disk import BALLAST_BYTES, Ballast, Disk
from helios_serve.store.files import DamagedFileError
from helios_serve.store.keys import KeyStore
from helios_serve.store.service_tables import ServiceTables
from helios_serve.store.video_store import VideoStore

WRITER = Path(__file__).with_name("writer.py")
writer = SimpleNamespace(**runpy.run_path(str(WRITER)))
FILLED = """
import os, runpy, signal, sys
from pathlib import Path
from types import SimpleNamespace
from helios_serve.store.video_store import VideoStore
writer = SimpleNamespace(**runpy.run_path(sys.argv[2]))
store = VideoStore(Path(sys.argv[1]))
for name in ("a", "b"):
    store.accept(writer.request(name), num_chunks=4)
    for chunk in range(3):
        writer.commit(store, chunk, name)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a server that was killed with two jobs of three chunks each."""
    folder = tmp_path_factory.mktemp("filled") / "data"
    command = [sys.executable, "-c", FILLED, str(folder), str(WRITER)]
    ended = subprocess.run(command, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert (folder / "jobs.sqlite3-wal").stat().st_size > 0
    return folder


@pytest.fixture
def killed(filled: Path, tmp_path: Path) -> Path:
    """A copy of `filled`, which a test may damage."""
    return shutil.copytree(filled, tmp_path / "data")


def contents(folder: Path) -> list[bytes]:
    """Return all files of jobs in a folder, by path."""
    found = [path for path in folder.rglob("*") if path.suffix in (".m4s", ".msgpack", ".mp4")]
    return sorted(path.read_bytes() for path in found)


def test_the_file_always_has_its_tables(killed: Path) -> None:
    """A database whose log is lost must not look like a new, empty one."""
    with closing(sqlite3.connect(f"file:{killed}/jobs.sqlite3?immutable=1", uri=True)) as file:
        names = {row[0] for row in file.execute("SELECT name FROM sqlite_master")}
    assert {"jobs", "usage", "deleted_jobs"} <= names


def lose(killed: Path) -> None:
    (killed / "jobs.sqlite3-wal").unlink()
    (killed / "jobs.sqlite3-shm").unlink()


def cut(killed: Path) -> None:
    log = killed / "jobs.sqlite3-wal"
    with log.open("r+b") as file:
        file.truncate(log.stat().st_size // 2)


def garble(killed: Path) -> None:
    log = killed / "jobs.sqlite3-wal"
    log.write_bytes(bytes(log.stat().st_size))


@pytest.mark.parametrize("damage", [lose, cut, garble])
def test_files_outlive_a_damaged_log(
    damage: Callable[[Path], None], killed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = contents(killed)
    damage(killed)
    with closing(VideoStore(killed)) as store:
        known = {item.request.request_id: item.next_chunk for item in store.unfinished()}
        assert {job.id for job in store.jobs()} == known.keys()
    # The chunk after the one of the row is what a crash in a commit leaves: it is made again.
    assert all(next_chunk in (2, 3) for next_chunk in known.values())
    again = 2 * sum(next_chunk == 2 for next_chunk in known.values())
    assert len(contents(killed)) == len(before) - again
    lost = {path.name for path in killed.glob("lost+found/*/segments/*")}
    assert lost == {"a", "b"} - known.keys()
    assert lost, "the damage was to lose a row"
    assert f"now in {killed}/lost+found/" in caplog.text


def test_a_checkpoint_keeps_rows_when_the_log_is_lost(tmp_path: Path) -> None:
    database = Database(tmp_path / "db", "CREATE TABLE t (x);", 1)
    database.run("INSERT INTO t VALUES (1)")
    database.checkpoint()
    with closing(sqlite3.connect(f"file:{tmp_path}/db?immutable=1", uri=True)) as file:
        assert file.execute("SELECT x FROM t").fetchall() == [(1,)]
    database.close()


def test_what_was_deleted_stays_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash between the row and its files: the files are known to be deleted."""
    with closing(VideoStore(tmp_path)) as store:
        writer.make_video(store)
        with monkeypatch.context() as patch:
            patch.setattr("helios_serve.store.all_files.JobFiles.delete", lambda *_: None)
            patch.setattr("helios_serve.store.jobs.JobStore.forget_deleted", lambda *_: None)
            store.delete(writer.JOB)
    assert contents(tmp_path)
    for _ in range(2):
        with closing(VideoStore(tmp_path)) as store:
            assert store.jobs() == []
        assert contents(tmp_path) == []
    assert not (tmp_path / "lost+found").exists()


def add_file(tables: ServiceTables, name: str, content: bytes = b"content") -> None:
    tables.files.scratch(name).write_bytes(content)
    tables.files.add(name, "acme", "name.txt", "batch")


def test_users_files_without_rows_are_set_aside(tmp_path: Path) -> None:
    with closing(ServiceTables(tmp_path)) as tables:
        for name in ("file-1", "file-2", "file-3"):
            add_file(tables, name)
    (tmp_path / "files/file-3").rename(tmp_path / "files/.file-3")  # its deletion was cut
    (tmp_path / "files/.file-4").write_bytes(b"half of an upl")
    with closing(sqlite3.connect(tmp_path / "service.sqlite3")) as rows, rows:
        rows.execute("DELETE FROM files WHERE id = 'file-2'")
    with closing(ServiceTables(tmp_path)) as tables:
        assert tables.files.get("file-3") is None
        assert tables.files.get("file-1") is not None
    assert os.listdir(tmp_path / "files") == ["file-1"]
    assert [path.name for path in tmp_path.glob("lost+found/*/files/*")] == ["file-2"]


def test_users_files_that_are_gone_or_cut_are_refused(tmp_path: Path) -> None:
    with closing(ServiceTables(tmp_path)) as tables:
        add_file(tables, "file-1")
        file = tables.files.get("file-1")
        assert file is not None
        assert tables.files.check(file).read_bytes() == b"content"
        (tmp_path / "files/file-1").write_bytes(b"conte")
        with pytest.raises(DamagedFileError, match="got 5 of 7 bytes"):
            tables.files.check(file)
        (tmp_path / "files/file-1").unlink()
        with pytest.raises(DamagedFileError, match="got None of 7 bytes"):
            tables.files.check(file)


def test_files_count_against_a_limit(tmp_path: Path) -> None:
    with closing(ServiceTables(tmp_path)) as tables:
        add_file(tables, "file-1", b"x" * 60)
        tables.files.scratch("file-2").write_bytes(b"x" * 41)
        with pytest.raises(CapacityError, match="got a file of 41 bytes, expected at most 40"):
            tables.files.add("file-2", "acme", "name", "batch", max_bytes=100)
        assert not tables.files.path("file-2").exists()
        tables.files.scratch("file-2").write_bytes(b"x" * 40)
        tables.files.add("file-2", "acme", "name", "batch", max_bytes=100)
        tables.files.scratch("file-3").write_bytes(b"x" * 101)
        tables.files.add("file-3", "other", "name", "batch", max_bytes=101)
        tables.files.delete("file-1")
        assert tables.files.bytes_of("acme") == 40


@pytest.mark.parametrize("loss", ["file", "rows"])
def test_lost_keys_do_not_open_the_server(tmp_path: Path, loss: str) -> None:
    with closing(KeyStore(tmp_path)) as keys:
        keys.check()
        assert keys.ring().is_open
        keys.create("acme")
    if loss == "file":
        for path in tmp_path.glob("keys.sqlite3*"):
            path.unlink()
    else:
        with closing(sqlite3.connect(tmp_path / "keys.sqlite3")) as rows, rows:
            rows.execute("DELETE FROM keys")
    with closing(KeyStore(tmp_path)) as keys:
        assert not keys.ring().is_open
        with pytest.raises(StorageError, match="has no keys, but API keys were in use: restore it"):
            keys.check()
        _, secret = keys.create("acme")
        keys.check()
        assert keys.ring().find(secret) is not None


def test_keys_of_an_earlier_version_are_in_use(tmp_path: Path) -> None:
    with closing(KeyStore(tmp_path)) as keys:
        keys.create("acme")
    (tmp_path / "keys.in-use").unlink()
    KeyStore(tmp_path).close()
    assert (tmp_path / "keys.in-use").exists()


def test_a_revoked_key_stays_revoked_when_the_log_is_lost(tmp_path: Path) -> None:
    keys = KeyStore(tmp_path)
    key, secret = keys.create("acme")
    keys.revoke(key.id)
    for name in ("keys.sqlite3",):
        (tmp_path / f"copy/{name}").parent.mkdir()
        (tmp_path / f"copy/{name}").write_bytes((tmp_path / name).read_bytes())
    keys.close()
    with closing(KeyStore(tmp_path / "copy")) as copy:
        assert copy.ring().find(secret) is None
        assert not copy.ring().is_open


def test_deleting_works_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tables have room as soon as the ballast is deleted."""

    transaction = Database.transaction

    def transaction_with_room(database: Database) -> AbstractContextManager[Run]:
        if ballast.path.exists():
            raise StorageError(f"cannot write: {os.strerror(errno.ENOSPC)}")
        return transaction(database)

    with closing(VideoStore(tmp_path)) as store, closing(ServiceTables(tmp_path)) as tables:
        ballast = store.ballast
        writer.make_video(store)
        store.accept(writer.request("other"), num_chunks=1)
        add_file(tables, "file-1")
        monkeypatch.setattr("helios_serve.store.disk.RESERVE", 0)
        deletions: dict[str, Callable[[], None]] = {
            "job": lambda: store.delete("job"),
            "other": lambda: store.finish("other", "cancelled"),
            "file-1": lambda: tables.files.delete("file-1"),
        }
        for name, delete in deletions.items():
            ballast.fill()
            assert ballast.path.stat().st_size == BALLAST_BYTES
            with monkeypatch.context() as patch:
                patch.setattr(Database, "transaction", transaction_with_room)
                delete()
            assert not ballast.path.exists(), name
        assert store.job("job") is None
        other = store.job("other")
        assert other is not None
        assert other.status == "cancelled"
        assert tables.files.get("file-1") is None


def test_a_deletion_that_fails_all_the_same_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StorageError("cannot write: No space left on device")

    with closing(ServiceTables(tmp_path)) as tables:
        add_file(tables, "file-1")
        with monkeypatch.context() as patch:
            patch.setattr(Database, "run_all", full)
            with pytest.raises(StorageError):
                tables.files.delete("file-1")
        file = tables.files.get("file-1")
        assert file is not None
        assert tables.files.check(file).read_bytes() == b"content"


def test_room_is_asked_for_before_it_is_used(tmp_path: Path) -> None:
    disk = Disk(tmp_path, limit=1000)
    with disk.reserve(600):
        with pytest.raises(StorageError, match=r"got 600 B of videos and files and 401 B more"):
            disk.check_room(401)
        disk.check_room(400)
    assert disk.used == 600
    with pytest.raises(StorageError) as raised, disk.reserve(401):
        raise AssertionError
    assert "--max-disk" in raised.value.public
    with pytest.raises(ValueError, match="^x$"), disk.reserve(400):
        raise ValueError("x")
    assert disk.used == 600
    Ballast(tmp_path).fill()
    disk.measure()
    assert disk.used == 0
