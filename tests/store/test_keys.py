"""API keys on disk."""

import sqlite3
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from helios_serve.errors import InvalidRequestError, StorageError
from helios_serve.store.keys import KeyStore


@pytest.fixture
def keys(tmp_path: Path) -> Iterator[KeyStore]:
    with closing(KeyStore(tmp_path)) as store:
        yield store


def test_a_key_stands_for_its_tenant_until_it_is_revoked(keys: KeyStore) -> None:
    assert keys.ring().is_open
    key, secret = keys.create("acme", "laptop")
    other, _ = keys.create("other")
    ring = keys.ring()
    assert secret.startswith("sk-helios-")
    assert not ring.is_open
    assert ring.find(secret) == key
    assert [ring.find(wrong) for wrong in ("", secret[:-1], f"{secret} ", "é", "\udc80")] == [
        None
    ] * 5
    assert keys.revoke(key.id).revoked_at is not None
    assert keys.ring().find(secret) is None
    keys.revoke(other.id)
    assert not keys.ring().is_open
    assert [item.id for item in keys.all()] == [key.id, other.id]


def test_what_is_stored_does_not_tell_the_key(keys: KeyStore, tmp_path: Path) -> None:
    _, secret = keys.create("acme")
    files = list(tmp_path.iterdir())
    names = {f"keys.sqlite3{end}" for end in ("", "-wal", "-shm")} | {"keys.in-use"}
    assert {path.name for path in files} == names
    for path in files:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        data = path.read_bytes()
        assert secret.encode() not in data
        assert secret.removeprefix("sk-helios-").encode() not in data


def test_rights_that_others_were_given_are_taken_back(tmp_path: Path) -> None:
    KeyStore(tmp_path).close()
    path = tmp_path / "keys.sqlite3"
    path.chmod(0o644)
    KeyStore(tmp_path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_changes_of_another_process_are_noticed(keys: KeyStore, tmp_path: Path) -> None:
    before = keys.version()
    keys.note_use({"none": 1.0})
    assert keys.version() == before  # one's own are known
    with closing(KeyStore(tmp_path)) as another:
        key, secret = another.create("acme")
        changed = keys.version()
        assert changed != before
        assert keys.ring().find(secret) == key
        another.revoke(key.id)
        assert keys.version() != changed
        assert keys.ring().find(secret) is None


def test_the_last_use_is_kept(keys: KeyStore) -> None:
    key, _ = keys.create("acme")
    keys.note_use({key.id: 12.5})
    assert [item.last_used_at for item in keys.all()] == [12.5]


def test_many_may_open_a_new_store_at_once(tmp_path: Path) -> None:
    def make(index: int) -> str:
        with closing(KeyStore(tmp_path / "new")) as store:
            return store.create(f"tenant-{index}").key.id

    with ThreadPoolExecutor(4) as threads:
        made = set(threads.map(make, range(8)))
    with closing(KeyStore(tmp_path / "new")) as store:
        assert {key.id for key in store.all()} == made


@pytest.mark.parametrize("name", ["", "a b", "-a", "a/b", "a\n", "é", "a" * 65])
def test_tenants_have_plain_names(keys: KeyStore, name: str) -> None:
    with pytest.raises(InvalidRequestError, match="expected 1 to 64 letters") as raised:
        keys.create(name)
    assert raised.value.param == "tenant"
    assert keys.all() == []


def test_what_cannot_be_done_is_told(keys: KeyStore, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="got key 'none', expected an id listed"):
        keys.revoke("none")
    with pytest.raises(InvalidRequestError, match="expected printable text"):
        keys.create("acme", "a\x1bb")
    with closing(sqlite3.connect(tmp_path / "keys.sqlite3")) as connection:
        connection.execute("PRAGMA user_version = 9")
    with pytest.raises(StorageError, match="newer version.*got schema 9, expected 1"):
        KeyStore(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "keys.sqlite3").write_bytes(b"no database" * 100)
    with pytest.raises(StorageError, match="cannot access the database .*not a database"):
        KeyStore(tmp_path / "other")
