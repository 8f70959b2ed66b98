"""A drained engine has delivered what it made."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helios_serve.store.video_store import VideoStore
from tests.support.engines import core, opened, read, request, run


def test_a_chunk_that_is_being_stored_is_delivered_before_the_drain_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Storing waits until the engine has nothing more to do."""
    own = core()
    is_storing, may_store = threading.Event(), threading.Event()
    commit: Callable[..., bool] = VideoStore.commit

    def slow_commit(*arguments: Any) -> bool:
        is_storing.set()
        assert may_store.wait(60)
        return commit(*arguments)

    monkeypatch.setattr(VideoStore, "commit", slow_commit)

    async def main() -> None:
        async with opened(tmp_path, own) as engine:
            await engine.submit(request("video", 33, output="segment"))
            assert await asyncio.to_thread(is_storing.wait, 60)
            draining = asyncio.create_task(engine.drain(60))
            assert await engine.models.drain(60)
            await asyncio.sleep(0.1)
            assert not draining.done()
            may_store.set()
            assert await draining
            assert [chunk.index for chunk in await read(engine, "video")] == [0]

    run(main())
