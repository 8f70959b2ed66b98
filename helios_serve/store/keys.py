"""API keys, which authenticate tenants. Only their hashes are stored."""

import fcntl
import hmac
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import msgspec

from helios_serve.errors import InvalidRequestError, StorageError
from helios_serve.options.scheduling import DEFAULT_TENANT
from helios_serve.store.database import Database
from helios_serve.store.files import (
    create_file,
    make_folder,
    make_private,
    storage_errors,
    sync_folder,
)

DATABASE = "keys.sqlite3"
IN_USE = "keys.in-use"
"""Empty file that exists once a key was created: keys are then needed even if their table is lost.
"""
PREFIX = "sk-helios-"
KEY_BYTES = 32
"""Random bytes in a key: enough entropy that a plain, unsalted hash is safe."""
SECRET = re.compile(PREFIX + r"[A-Za-z0-9_-]{43}")
TENANT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MAX_LABEL = 200
FIXED = "--api-key"
"""Id and label of the keys that are not stored."""
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
    """The record of a key, without the key itself. Times are Unix seconds.

    A revoked key stays in the table, so that revoking the last key does not open the server.
    """

    id: str
    hash: bytes
    tenant: str
    label: str
    created_at: float
    last_used_at: float | None = None
    revoked_at: float | None = None


class NewKey(NamedTuple):
    """A created key. `secret` is the key itself, which cannot be retrieved later."""

    key: ApiKey
    secret: str


class KeyRing(NamedTuple):
    """The valid keys at one moment, by hash.

    `is_open` is set if no key was ever created: then requests need no key. A table that lost its
    keys is not open.
    """

    keys: Mapping[bytes, ApiKey]
    is_open: bool

    def find(self, secret: str) -> ApiKey | None:
        """Return the key with this secret, or None. The time it takes reveals no other key."""
        given = hash_of(secret)
        key = self.keys.get(given)
        return key if key is not None and hmac.compare_digest(key.hash, given) else None


class KeyStore:
    """The keys in a SQLite file of the data folder, readable only by its owner.

    Several processes may open it. Thread-safe. Methods raise StorageError if the disk fails.
    `fixed` are further keys, of the default tenant, which are valid but not stored.
    """

    def __init__(
        self, folder: Path, clock: Callable[[], float] = time.time, *, fixed: Iterable[str] = ()
    ) -> None:
        self.path = folder / DATABASE
        self._clock = clock
        self._fixed = {key.hash: key for key in map(fixed_key, fixed)}
        self._in_use = folder / IN_USE
        make_folder(folder)
        make_private(folder)
        with creation_lock(folder):
            self._table = Database(self.path, SCHEMA, SCHEMA_VERSION)
        if self.all():
            self._note_in_use()

    def create(self, tenant: str, label: str = "") -> NewKey:
        """Create a key for a tenant. Raises InvalidRequestError for an invalid tenant or label."""
        return self._insert(tenant, label, PREFIX + secrets.token_urlsafe(KEY_BYTES))

    def add(self, tenant: str, secret: str, label: str = "") -> NewKey:
        """Add a key that was created in another folder, such as that of another cell.

        Raises InvalidRequestError for an invalid tenant, key or label, or a key that is here.
        """
        if not SECRET.fullmatch(secret):
            raise InvalidRequestError(
                f"got a key of {len(secret)} characters, expected one as `helios-serve keys "
                "create` prints it",
                param="key",
            )
        present = [key.id for key in self.all() if key.hash == hash_of(secret)]
        if present:
            raise InvalidRequestError(
                f"got a key that {self.path} has already, as {present[0]}", param="key"
            )
        return self._insert(tenant, label, secret)

    def _insert(self, tenant: str, label: str, secret: str) -> NewKey:
        check_tenant_name(tenant)
        if len(label) > MAX_LABEL or not label.isprintable():
            raise InvalidRequestError(
                f"got name {label!r}, expected printable text of at most {MAX_LABEL} characters",
                param="name",
            )
        name = f"key_{secrets.token_hex(8)}"
        key = ApiKey(name, hash_of(secret), tenant, label, self._clock())
        self._note_in_use()
        self._table.insert("keys", msgspec.structs.asdict(key))
        self._table.checkpoint()
        return NewKey(key, secret)

    def all(self) -> list[ApiKey]:
        """Return all keys, revoked ones included, in the order in which they were created."""
        rows = self._table.run(
            "SELECT id, hash, tenant, label, created_at, last_used_at, revoked_at FROM keys "
            "ORDER BY created_at, id"
        )
        return [ApiKey(*row) for row in rows]

    def ring(self) -> KeyRing:
        """Return the keys that are valid now."""
        keys = self.all()
        valid = {key.hash: key for key in keys if key.revoked_at is None}
        is_open = not (keys or self._fixed or self._in_use.exists())
        return KeyRing(valid | self._fixed, is_open=is_open)

    def check(self) -> None:
        """Raise StorageError if all keys were lost, so that no request would be served."""
        if self._in_use.exists() and not (self._fixed or self.all()):
            raise StorageError(
                f"{self.path} is missing or has no keys, but API keys were in use: restore it, "
                "create a key with `helios-serve keys create`, or, to serve requests without a "
                f"key, delete {self._in_use}"
            )

    def revoke(self, key_id: str) -> ApiKey:
        """Revoke a key and return its record. Raises InvalidRequestError for an unknown id."""
        self._table.run(
            "UPDATE keys SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL",
            self._clock(),
            key_id,
        )
        self._table.checkpoint()
        for key in self.all():
            if key.id == key_id:
                return key
        raise InvalidRequestError(
            f"got key {key_id!r}, expected an id listed by `helios-serve keys list`", param="id"
        )

    def note_use(self, used: Mapping[str, float]) -> None:
        """Store the times, by key id, at which keys were last used."""
        statement = "UPDATE keys SET last_used_at = ? WHERE id = ?"
        self._table.run_all(*((statement, (moment, key_id)) for key_id, moment in used.items()))

    def version(self) -> int:
        """Return a number that changes whenever another process changes the table."""
        number: int = self._table.run("PRAGMA data_version")[0][0]
        return number

    def close(self) -> None:
        self._table.close()

    def _note_in_use(self) -> None:
        """Record, outside of the table, that there are keys."""
        with storage_errors("write", self._in_use):
            if not self._in_use.exists():
                create_file(self._in_use).close()
                sync_folder(self._in_use.parent)


@contextmanager
def creation_lock(folder: Path) -> Iterator[None]:
    """Serialize processes that create the same SQLite file: SQLite itself would fail in one."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def fixed_key(secret: str) -> ApiKey:
    """Return the record of a key that is not stored."""
    return ApiKey(FIXED, hash_of(secret), DEFAULT_TENANT, FIXED, 0.0)


def hash_of(secret: str) -> bytes:
    return sha256(secret.encode(errors="replace")).digest()


def check_tenant_name(name: str) -> None:
    """Raise InvalidRequestError unless the name is safe in lists, logs and the tenants file."""
    if not TENANT_NAME.fullmatch(name):
        raise InvalidRequestError(
            f"got tenant {name!r}, expected 1 to 64 letters, digits, dots, dashes or underscores, "
            "starting with a letter or digit",
            param="tenant",
        )
