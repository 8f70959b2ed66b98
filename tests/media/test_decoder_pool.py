"""Decoder processes that are killed or stopped, or exceed their limits."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import psutil
import pytest

from helios_serve.errors import CapacityError, InvalidRequestError
from helios_serve.media.decode_job import DecodeLimits, MediaKind
from helios_serve.media.decoder_pool import DecoderPool
from helios_serve.media.references import Reference, load_image, load_video
from tests.support.broken_media import corpus, fuzzed, long_movie, movie, picture, png

T = TypeVar("T")


def run(folder: Path, use: Callable[[DecoderPool], Awaitable[T]], **options: object) -> T:
    """Run `use` with a pool, and assert that no process is left."""

    async def main() -> T:
        async with DecoderPool(folder / "incoming", **options) as pool:  # type: ignore[arg-type]
            result = await use(pool)
        assert not pool.busy
        return result

    result = asyncio.run(main())
    assert not [child for child in psutil.Process().children() if "decoder" in str(child.cmdline())]
    assert not list((folder / "incoming").iterdir())
    return result


async def decode(pool: DecoderPool, path: Path, kind: MediaKind | None = None) -> Reference:
    return await pool.decode(
        path, width=64, height=64, kind=kind, name="mine", param="input_reference"
    )


def write(folder: Path, data: bytes, name: str = "media") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


async def pid_of_busy(pool: DecoderPool) -> int:
    while not pool.busy:
        await asyncio.sleep(0.001)
    return next(iter(pool.busy)).pid


def long_video(folder: Path, chunks: int = 30) -> Path:
    """It takes a while to decode."""
    return write(folder, long_movie(chunks), "long")


def test_what_a_process_decodes_is_what_we_decode(tmp_path: Path) -> None:
    image, video = write(tmp_path, picture(), "image"), write(tmp_path, movie(), "video")

    async def use(pool: DecoderPool) -> list[Reference]:
        return [await decode(pool, path) for path in (image, video)]

    size = {"width": 64, "height": 64}
    expected = [
        Reference("image", load_image(image, **size)),
        Reference("video", load_video(video, **size)),
    ]
    assert run(tmp_path, use) == expected


def test_of_a_long_video_its_ends_come(tmp_path: Path) -> None:
    path = write(tmp_path, movie(frames=180))
    got = run(tmp_path, lambda pool: decode(pool, path)).frames
    whole = load_video(path, width=64, height=64)
    assert (got.count, got.skipped) == (100, 80)
    pixels, frame = np.frombuffer(whole.data, np.uint8), 64 * 64 * 3
    expected = np.concatenate([pixels[:frame], pixels[-99 * frame :]])
    assert (np.frombuffer(got.data, np.uint8) == expected).all()


def test_processes_are_started_once_and_replaced_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("helios_serve.media.decoder_pool.JOBS_PER_PROCESS", 2)
    path = write(tmp_path, picture())

    async def use(pool: DecoderPool) -> list[int | None]:
        pids = []
        for _ in range(3):
            await decode(pool, path)
            pids.append(pool.idle[0].pid if pool.idle else None)
        return pids

    first, second, third = run(tmp_path, use, size=1)
    assert first is not None
    assert second is None
    assert third not in (None, first)


def test_a_killed_process_costs_nothing_but_time(tmp_path: Path) -> None:
    image, video = write(tmp_path, picture(), "image"), long_video(tmp_path)

    async def use(pool: DecoderPool) -> Reference:
        await decode(pool, image)
        os.kill(pool.idle[0].pid, signal.SIGKILL)  # before it is given anything
        assert (await decode(pool, image)).kind == "image"
        task = asyncio.create_task(decode(pool, video))
        os.kill(await pid_of_busy(pool), signal.SIGKILL)
        assert (await decode(pool, image)).kind == "image"
        return await task

    assert run(tmp_path, use).frames.count == 100


def test_what_ends_two_processes_is_refused(tmp_path: Path) -> None:
    path = long_video(tmp_path)

    async def use(pool: DecoderPool) -> None:
        task = asyncio.create_task(decode(pool, path))
        first = await pid_of_busy(pool)
        os.kill(first, signal.SIGSEGV)
        while (second := await pid_of_busy(pool)) == first:
            await asyncio.sleep(0.01)
        os.kill(second, signal.SIGSEGV)
        await task

    with pytest.raises(InvalidRequestError, match=r"mine: got a file that crashes .* \(SIGSEGV\)"):
        run(tmp_path, use)


def test_a_stopped_process_is_not_waited_for(tmp_path: Path) -> None:
    video, image = long_video(tmp_path), write(tmp_path, picture(), "image")

    async def use(pool: DecoderPool) -> None:
        await decode(pool, image)
        task = asyncio.create_task(decode(pool, video))
        os.kill(await pid_of_busy(pool), signal.SIGSTOP)
        assert (await decode(pool, image)).kind == "image"
        await task

    with pytest.raises(InvalidRequestError, match="takes more than 1 seconds, expected"):
        run(tmp_path, use, limits=DecodeLimits(seconds=1))


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        pytest.param(
            DecodeLimits(cpu_seconds=1),
            "takes more than 1 seconds of CPU time",
            marks=pytest.mark.slow,
        ),
        (DecodeLimits(memory=600 << 20), "takes too much memory"),
        (DecodeLimits(result_bytes=1000), "OSError while decoding"),
    ],
    ids=["time", "memory", "result"],
)
def test_limits_end_what_exceeds_them(tmp_path: Path, limits: DecodeLimits, message: str) -> None:
    """A process whose allocation failed continues with the next file."""
    image = write(tmp_path, picture(), "image")
    expensive = {
        "takes too much memory": png(8000, 8000, rows=bytes(1001 * 8000)),
        "OSError while decoding": picture(),
    }
    path = (
        write(tmp_path, expensive[message]) if message in expensive else long_video(tmp_path, 300)
    )

    async def use(pool: DecoderPool) -> None:
        with pytest.raises(InvalidRequestError, match=message) as caught:
            await decode(pool, path)
        assert caught.value.param == "input_reference"
        if limits.result_bytes > 1000:
            assert (await decode(pool, image)).kind == "image"

    run(tmp_path, use, limits=limits)


def test_too_many_that_wait_are_refused(tmp_path: Path) -> None:
    path = long_video(tmp_path)

    async def use(pool: DecoderPool) -> None:
        tasks = [asyncio.create_task(decode(pool, path)) for _ in range(2)]
        await pid_of_busy(pool)
        try:
            with pytest.raises(CapacityError, match="1 references waiting"):
                await decode(pool, path)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    run(tmp_path, use, size=1, max_waiting=1)


def test_a_process_is_its_own_and_knows_no_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    path = write(tmp_path, picture())

    async def use(pool: DecoderPool) -> tuple[dict[str, str], list[str]]:
        await decode(pool, path)
        process = psutil.Process(pool.idle[0].pid)
        limits = Path(f"/proc/{process.pid}/limits").read_text()
        assert "Max core file size        0" in limits
        assert "Max open files            64" in limits
        maps = Path(f"/proc/{process.pid}/maps").read_text()
        return process.environ(), [line for line in maps.splitlines() if "torch" in line]

    environment, torch = run(tmp_path, use)
    assert "hf_secret" not in environment.values()
    assert not torch


SERVER = """
import asyncio, sys
from pathlib import Path
from helios_serve.media.decoder_pool import DecoderPool

async def main(folder):
    async with DecoderPool(folder / "incoming") as pool:
        task = asyncio.create_task(
            pool.decode(folder / "long", width=64, height=64, kind=None, name="a", param="b")
        )
        while not pool.busy:
            await asyncio.sleep(0.01)
        print(*(decoder.pid for decoder in pool.busy), flush=True)
        await task

asyncio.run(main(Path(sys.argv[1])))
"""


def test_processes_end_with_the_server_also_at_work(tmp_path: Path) -> None:
    long_video(tmp_path, chunks=300)
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        decoder = psutil.Process(int(server.stdout.readline()))
        server.kill()
    until = time.monotonic() + 20
    while decoder.is_running() and decoder.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.slow
def test_fuzzed_media_is_read_or_refused(tmp_path: Path) -> None:
    async def use(pool: DecoderPool) -> "Counter[str]":
        async def outcome(name: str, data: bytes) -> str:
            try:
                await decode(pool, write(tmp_path, data, name))
            except InvalidRequestError as error:
                return str(error)
            return "read"

        return Counter([await outcome(name, data) for name, data in fuzzed(seed=1, count=1500)])

    began = time.monotonic()
    outcomes = run(tmp_path, use)
    read = outcomes.pop("read")
    assert min(read, outcomes.total()) > 100
    for message in outcomes:
        assert re.match("mine: got .*, expected ", message)
        assert str(tmp_path) not in message
    assert time.monotonic() - began < 300


def test_broken_media_is_refused_whatever_it_is_said_to_be(tmp_path: Path) -> None:
    kinds: tuple[MediaKind | None, ...] = (None, "image", "video")

    async def use(pool: DecoderPool) -> None:
        for name, data in corpus().items():
            path = write(tmp_path, data, "broken")
            for kind in kinds:
                with pytest.raises(
                    InvalidRequestError, match=r"^mine: got .*, expected "
                ) as caught:
                    await decode(pool, path, kind)
                assert str(tmp_path) not in str(caught.value), name

    run(tmp_path, use)
