"""API keys, of which only hashes are kept: who has one speaks for its tenant."""

import fcntl
import hmac
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import msgspec

from helios_serve.errors import InvalidRequestError
from helios_serve.store.database import Database
from helios_serve.store.files import make_folder, storage_errors

DATABASE = "keys.sqlite3"
PREFIX = "sk-helios-"
KEY_BYTES = 32
"""Random ones, which nobody guesses: a plain hash of them is enough."""
TENANT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MAX_LABEL = 200
SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE keys (
    id TEXT PRIMARY KEY NOT NULL,
    hash BLOB NOT NULL UNIQUE,
    tenant TEXT NOT NULL,
    label TEXT NOT NULL,
    created_at REAL NOT NULL,
    last_used_at REAL,
    revoked_at REAL
);
"""


class ApiKey(msgspec.Struct, frozen=True):
    """What is known of a key, which is not the key. Times are Unix seconds.

    A revoked one stays in the table: a server whose last key was revoked is not open to all.
    """

    id: str
    hash: bytes
    tenant: str
    label: str
    created_at: float
    last_used_at: float | None = None
    revoked_at: float | None = None


class NewKey(NamedTuple):
    """`secret` is the key itself, told this once."""

    key: ApiKey
    secret: str


class KeyRing(NamedTuple):
    """The keys of one moment, by hash; those that were revoked are not among them.

    Without any key at all `is_open`: there is nothing to tell senders apart by.
    """

    keys: Mapping[bytes, ApiKey]
    is_open: bool

    def find(self, secret: str) -> ApiKey | None:
        """The key, in time that tells nothing of those that there are."""
        given = hash_of(secret)
        key = self.keys.get(given)
        return key if key is not None and hmac.compare_digest(key.hash, given) else None


class KeyStore:
    """A SQLite file in the data folder, which several processes may have open.

    Only its owner can read it. Methods may be called from any thread, and raise StorageError.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self.path = folder / DATABASE
        self._clock = clock
        make_folder(folder)
        with taking_turns(folder):
            with storage_errors("open", self.path):
                make_private(self.path)
            self._table = Database(self.path, SCHEMA, SCHEMA_VERSION)

    def create(self, tenant: str, label: str = "") -> NewKey:
        """A new key of a tenant; raises InvalidRequestError for a name that is none."""
        check_tenant_name(tenant)
        if len(label) > MAX_LABEL or not label.isprintable():
            raise InvalidRequestError(
                f"got name {label!r}, expected printable text of at most {MAX_LABEL} characters",
                param="name",
            )
        secret = PREFIX + secrets.token_urlsafe(KEY_BYTES)
        name = f"key_{secrets.token_hex(8)}"
        key = ApiKey(name, hash_of(secret), tenant, label, self._clock())
        self._table.insert("keys", msgspec.structs.asdict(key))
        return NewKey(key, secret)

    def all(self) -> list[ApiKey]:
        """In the order in which they were made, revoked ones too."""
        rows = self._table.run(
            "SELECT id, hash, tenant, label, created_at, last_used_at, revoked_at FROM keys "
            "ORDER BY created_at, id"
        )
        return [ApiKey(*row) for row in rows]

    def ring(self) -> KeyRing:
        """What a server goes by."""
        keys = self.all()
        valid = {key.hash: key for key in keys if key.revoked_at is None}
        return KeyRing(valid, is_open=not keys)

    def revoke(self, key_id: str) -> ApiKey:
        """Let nobody use a key any more; raises InvalidRequestError for one that is unknown."""
        self._table.run(
            "UPDATE keys SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL",
            self._clock(),
            key_id,
        )
        for key in self.all():
            if key.id == key_id:
                return key
        raise InvalidRequestError(
            f"got key {key_id!r}, expected an id as `helios-serve keys list` shows it", param="id"
        )

    def note_use(self, used: Mapping[str, float]) -> None:
        """Enter when keys, by id, were last used."""
        statement = "UPDATE keys SET last_used_at = ? WHERE id = ?"
        self._table.together(*((statement, (moment, key_id)) for key_id, moment in used.items()))

    def version(self) -> int:
        """Another number than before if another process has changed something."""
        number: int = self._table.run("PRAGMA data_version")[0][0]
        return number

    def close(self) -> None:
        self._table.close()


@contextmanager
def taking_turns(folder: Path) -> Iterator[None]:
    """Two processes that make the same new SQLite file at once would not both succeed."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def make_private(path: Path) -> None:
    """Leave the file to its owner; SQLite gives its other files the rights of this one."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        path.chmod(0o600)


def hash_of(secret: str) -> bytes:
    return sha256(secret.encode(errors="replace")).digest()


def check_tenant_name(name: str) -> None:
    """Raise InvalidRequestError unless it can stand in a list, a log and a file of tenants."""
    if not TENANT_NAME.fullmatch(name):
        raise InvalidRequestError(
            f"got tenant {name!r}, expected 1 to 64 letters, digits, dots, dashes or underscores, "
            "a letter or digit first",
            param="tenant",
        )
