"""Videos without an end in an engine with a store: viewers, stopping and resuming."""

from pathlib import Path
from typing import NoReturn

import pytest

from helios_serve.errors import InvalidRequestError
from helios_serve.options.sampling import ENDLESS_FRAMES
from helios_serve.video_request import VideoRequest
from tests.support.engines import (
    core,
    fragments,
    indices,
    job_status,
    num_stored,
    opened,
    read,
    request,
    run,
    store_of,
    undisturbed,
    until,
)

KEPT = 4


def endless(**options: int) -> VideoRequest:
    return request("a", ENDLESS_FRAMES, kept_chunks=KEPT, **options)


def test_it_is_made_until_it_is_stopped(tmp_path: Path) -> None:
    """Its chunks are those of a video with an end."""
    with_end = undisturbed(request("b", 99))

    async def main() -> None:
        async with opened(tmp_path) as engine:
            await engine.submit(endless())
            store = store_of(engine)
            await until(lambda: (store.job("a") or fail()).next_chunk >= 3)
            early = [store.fragment("a", chunk) for chunk in range(3)]
            assert early == with_end
            await until(lambda: (store.job("a") or fail()).next_chunk >= 12)
            assert num_stored(engine, "a") == 2 * KEPT
            progress = await engine.progress("a")
            assert progress is not None
            assert progress.eta_seconds is None
            await engine.abort("a")
            assert job_status(engine, "a") == "completed"
            late = await read(engine, "a")
            assert len(late) == 2 * KEPT  # a viewer of what is left: no error at its end
            assert len(fragments(late)) == 2 * KEPT

    run(main())


def test_a_viewer_who_is_late_goes_on_in_the_window(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as engine:
            await engine.submit(endless())
            store, seen = store_of(engine), []
            async for chunk in engine.watch("a"):
                seen.append(chunk.index)
                if len(seen) == 2:
                    await until(lambda: (store.job("a") or fail()).next_chunk >= 30)
                if len(seen) == 5:
                    break
            assert seen[:2] == [0, 1]
            assert seen[2] >= 30 - KEPT - 1  # as far as it was announced
            assert seen[2:] == list(range(seen[2], seen[2] + 3))
            await engine.abort("a")

    run(main())


def test_it_is_resumed_after_a_restart(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as engine:
            await engine.submit(endless())
            await until(lambda: num_stored(engine, "a") == 2 * KEPT)
        async with opened(tmp_path, core()) as engine:
            store = store_of(engine)
            before = (store.job("a") or fail()).next_chunk
            await until(lambda: (store.job("a") or fail()).next_chunk >= before + 2)
            await engine.abort("a")
            assert indices(await read(engine, "a"))[-1] >= before + 1

    run(main())


def test_one_that_nobody_watches_is_found(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as engine:
            await engine.submit(endless())
            await engine.submit(request("b", 33 * 50))
            assert engine.unwatched(60) == []
            assert engine.unwatched(-1) == ["a"]
            for name in ("a", "b"):
                await engine.abort(name)

    run(main())


def test_its_length_is_the_only_one_beyond_the_limit(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as engine:
            with pytest.raises(InvalidRequestError, match="num_frames"):
                await engine.submit(request("a", ENDLESS_FRAMES - 1))

    run(main())


def fail() -> NoReturn:
    raise AssertionError("the job is gone")
