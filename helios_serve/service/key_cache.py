"""The keys that a running server goes by, and when they were used."""

import asyncio
import time
from collections.abc import Callable

from helios_serve.errors import StorageError
from helios_serve.logger import logger
from helios_serve.store.keys import ApiKey, KeyRing, KeyStore

FRESH_SECONDS = 0.5
"""How old what is known of the keys may be; so long a revoked one may still be used."""
NOTE_SECONDS = 60.0
"""How far the last use of a key on disk may be behind."""


class KeyCache:
    """A store's keys in memory: other processes change them while the server runs."""

    def __init__(self, store: KeyStore, clock: Callable[[], float] = time.monotonic) -> None:
        self.store = store
        self._clock = clock
        self._version = store.version()
        self._ring = store.ring()
        self._read_at = self._noted_at = clock()
        self._used: dict[str, float] = {}
        self._reading = asyncio.Lock()

    async def ring(self) -> KeyRing:
        """The keys as they are now, or were a moment ago; raises StorageError."""
        if self._is_stale():
            async with self._reading:
                if self._is_stale():
                    await self._read()
        return self._ring

    def note_use(self, key: ApiKey) -> None:
        """A sender has shown the key."""
        self._used[key.id] = time.time()

    async def write_uses(self) -> None:
        """Write down when keys were used; nobody is turned away because that fails."""
        used, self._used = self._used, {}
        self._noted_at = self._clock()
        if used:
            try:
                await asyncio.to_thread(self.store.note_use, used)
            except StorageError as error:
                logger.warning("when keys were used is not noted: %s", error)

    def _is_stale(self) -> bool:
        return self._clock() >= self._read_at + FRESH_SECONDS

    async def _read(self) -> None:
        """The version is asked for before the keys, so that no change is missed."""
        now, version = self._clock(), await asyncio.to_thread(self.store.version)
        if version != self._version:
            self._ring, self._version = await asyncio.to_thread(self.store.ring), version
        self._read_at = now
        if now >= self._noted_at + NOTE_SECONDS:
            await self.write_uses()
