"""Keys are cached for a short time, on a clock of the test."""

import asyncio
from contextlib import closing
from pathlib import Path

from helios_serve.service.key_cache import FRESH_SECONDS, KeyCache
from helios_serve.store.keys import KeyStore


def test_changes_of_another_process_are_seen_in_time(tmp_path: Path) -> None:
    """No sooner either: a request does not wait for the disk."""
    now = 0.0

    async def is_valid(cache: KeyCache, secret: str) -> bool:
        return (await cache.ring()).find(secret) is not None

    async def main() -> None:
        nonlocal now
        with closing(KeyStore(tmp_path)) as server, closing(KeyStore(tmp_path)) as command:
            cache = KeyCache(server, lambda: now)
            made = command.create("acme")
            assert not await is_valid(cache, made.secret)
            now = FRESH_SECONDS
            assert await is_valid(cache, made.secret)
            command.revoke(made.key.id)
            now = 1.9 * FRESH_SECONDS
            assert await is_valid(cache, made.secret)
            now = 2 * FRESH_SECONDS
            assert not await is_valid(cache, made.secret)

    asyncio.run(main())
