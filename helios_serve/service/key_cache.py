"""In-memory cache of the API keys, and of the times at which they were last used."""

import asyncio
import time
from collections.abc import Callable

from helios_serve.errors import StorageError
from helios_serve.logger import logger
from helios_serve.store.keys import ApiKey, KeyRing, KeyStore

FRESH_SECONDS = 0.5
"""Maximum age of the cached keys. A revoked key may be accepted for this long."""
NOTE_SECONDS = 60.0
"""Seconds between writes of last-use times to disk."""


class KeyCache:
    """Caches the keys of a store, which other processes may change while the server runs."""

    def __init__(self, store: KeyStore, clock: Callable[[], float] = time.monotonic) -> None:
        self.store = store
        self._clock = clock
        self._version = store.version()
        self._ring = store.ring()
        self._read_at = self._noted_at = clock()
        self._used: dict[str, float] = {}
        self._reading = asyncio.Lock()

    async def ring(self) -> KeyRing:
        """Return the valid keys, at most FRESH_SECONDS old. Raises StorageError."""
        if self._is_stale():
            async with self._reading:
                if self._is_stale():
                    await self._read()
        return self._ring

    def note_use(self, key: ApiKey) -> None:
        """Record that a request used the key."""
        self._used[key.id] = time.time()

    async def write_uses(self) -> None:
        """Write last-use times to the store.

        Errors are only logged: requests must not fail on them.
        """
        used, self._used = self._used, {}
        self._noted_at = self._clock()
        if used:
            try:
                await asyncio.to_thread(self.store.note_use, used)
            except StorageError as error:
                logger.warning("cannot store the last use of API keys: %s", error)

    def _is_stale(self) -> bool:
        return self._clock() >= self._read_at + FRESH_SECONDS

    async def _read(self) -> None:
        """Read the keys if their version has changed.

        The version is read before the keys, so that no change is missed.
        """
        now, version = self._clock(), await asyncio.to_thread(self.store.version)
        if version != self._version:
            self._ring, self._version = await asyncio.to_thread(self.store.ring), version
        self._read_at = now
        if now >= self._noted_at + NOTE_SECONDS:
            await self.write_uses()
