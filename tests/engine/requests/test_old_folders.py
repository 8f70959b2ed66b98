"""A data folder of an earlier version is migrated, and nothing in it is lost.

`data/schema_2.tar.xz` was made by the server at commit 159af4f, which was killed: of tenant "acme",
a completed, a cancelled and a deleted video, a batch with its files, an uploaded picture, and three
unfinished videos, one of them with a reference.
"""

import asyncio
import json
import sqlite3
import tarfile
from collections.abc import Iterator
from contextlib import closing
from datetime import date
from pathlib import Path
from typing import Any

import msgspec
import pytest

from helios_serve.engine.requests.async_engine import AsyncEngine
from helios_serve.errors import StorageError
from helios_serve.store.database import Database
from helios_serve.store.keys import KeyStore
from helios_serve.store.service_tables import ServiceTables
from helios_serve.store.video_store import VideoStore
from tests.support.engines import core, read, run, undisturbed

ARCHIVE = Path(__file__).parent / "data" / "schema_2.tar.xz"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "old"


@pytest.fixture
def ids(old: Path) -> dict[str, str]:
    known: dict[str, str] = json.loads((old / "known.json").read_text())["ids"]
    return known


@pytest.fixture
def store(old: Path) -> Iterator[VideoStore]:
    with closing(VideoStore(old)) as store:
        yield store


def test_videos_are_what_they_were(store: VideoStore, ids: dict[str, str], old: Path) -> None:
    jobs = {job.id: (job.status, job.next_chunk, job.num_chunks) for job in store.jobs()}
    assert {name: jobs[ids[name]] for name in ("completed", "cancelled", "waiting")} == {
        "completed": ("completed", 2, 2),
        "cancelled": ("cancelled", 1, 10),
        "waiting": ("queued", 0, 2),
    }
    assert ids["deleted"] not in jobs
    job = store.job(ids["completed"])
    assert job is not None
    assert (job.tenant, job.request.prompt, job.request.params.seed) == ("acme", "a dog runs", 1)
    assert (job.request.params.num_frames, job.frames_left) == (40, 0)
    for chunk in range(2):
        fragment = (old / f"segments/{job.id}/{chunk:05d}.m4s").read_bytes()
        assert store.fragment(job.id, chunk) == fragment
    (day,) = store.usage("acme", date.min, date.max)
    assert day.requests == 7
    assert not (old / "lost+found").exists()


def test_unfinished_videos_are_finished(store: VideoStore, ids: dict[str, str]) -> None:
    """With the same frames as without the migration. New files have checksums."""
    unfinished = {item.request.request_id: item for item in store.unfinished()}
    assert unfinished.keys() == {ids["unfinished"], ids["reference"], ids["waiting"]}
    assert [unfinished[ids[name]].next_chunk for name in ("unfinished", "reference")] == [1, 1]

    async def main() -> None:
        async with AsyncEngine({"nano": core()}, store) as engine:
            await asyncio.gather(*(read(engine, name) for name in unfinished))

    run(main())
    for name in unfinished:
        job = store.job(name)
        assert job is not None
        assert (job.status, job.next_chunk) == ("completed", job.num_chunks)
    waiting = msgspec.structs.replace(unfinished[ids["waiting"]].request, request_id="waiting")
    assert [store.fragment(ids["waiting"], chunk) for chunk in range(2)] == undisturbed(waiting)


def test_files_and_batches_are_there(old: Path, ids: dict[str, str]) -> None:
    with closing(ServiceTables(old)) as tables:
        for name, purpose in (("image", "vision"), ("lines", "batch"), ("output", "batch_output")):
            file = tables.files.get(ids[name])
            assert file is not None
            assert (file.tenant, file.purpose) == ("acme", purpose)
            assert len(tables.files.check(file).read_bytes()) == file.size
        batch = tables.batches.get(ids["batch"])
        assert batch is not None
        assert (batch.status, batch.total, batch.output_file_id) == ("completed", 1, ids["output"])
        (line,) = tables.batches.results(batch.id, are_good=True)
        assert json.loads(line)["custom_id"] == "one"


def test_keys_are_valid_and_in_use(old: Path) -> None:
    known: dict[str, Any] = json.loads((old / "known.json").read_text())
    with closing(KeyStore(old)) as keys:
        found = keys.ring().find(known["key"])
        assert found is not None
        assert (found.tenant, found.label) == ("acme", "laptop")
        assert not keys.ring().is_open
    assert (old / "keys.in-use").exists()


def test_a_folder_is_migrated_once(old: Path) -> None:
    for _ in range(2):
        VideoStore(old).close()
    with closing(sqlite3.connect(old / "jobs.sqlite3")) as rows:
        assert rows.execute("PRAGMA user_version").fetchone() == (5,)
        for column in ("checksum", "queue_seconds", "decode_seconds"):
            assert rows.execute(f"SELECT DISTINCT {column} FROM jobs").fetchall() == [(None,)]


STEPS = {1: "ALTER TABLE t ADD COLUMN b;", 2: "UPDATE t SET b = a || '!';"}


def test_migrations_run_in_order(tmp_path: Path) -> None:
    path = tmp_path / "db"
    with closing(Database(path, "CREATE TABLE t (a);", 1)) as database:
        database.run("INSERT INTO t VALUES ('x')")
    with closing(Database(path, "unused", 3, STEPS)) as database:
        assert [tuple(row) for row in database.run("SELECT a, b FROM t")] == [("x", "x!")]
        assert database.run("PRAGMA user_version")[0][0] == 3
    with closing(Database(path, "unused", 3, STEPS)) as database:
        assert [tuple(row) for row in database.run("SELECT a, b FROM t")] == [("x", "x!")]


def test_a_migration_that_fails_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "db"
    Database(path, "CREATE TABLE t (a);", 1).close()
    with pytest.raises(StorageError, match="no such table: missing"):
        Database(path, "unused", 2, {1: "ALTER TABLE t ADD COLUMN b; SELECT * FROM missing;"})
    with closing(Database(path, "CREATE TABLE t (a);", 1)) as database:
        assert [row["name"] for row in database.run("PRAGMA table_info(t)")] == ["a"]


def test_a_version_without_a_migration_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "db"
    Database(path, "CREATE TABLE t (a);", 1).close()
    with pytest.raises(StorageError, match="an older version.*got schema 1, expected 4"):
        Database(path, "unused", 4, {2: "", 3: ""})
