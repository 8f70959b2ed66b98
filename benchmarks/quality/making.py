"""Makes the videos of HeliosBench with a server."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import av
import msgspec

from helios_serve.benchmarks.load.json_file import read_json
from helios_serve.benchmarks.load.request import DEFAULT_TENANT, SessionRequest
from helios_serve.benchmarks.measure.result_files import write
from helios_serve.benchmarks.quality.cases import BenchCase, find_videos
from helios_serve.benchmarks.targets.dialects import MULTIPART, VIDEOS, body_of
from helios_serve.benchmarks.targets.server import Server
from helios_serve.benchmarks.targets.target import (
    SessionFailedError,
    SessionRefusedError,
    UnreachableError,
)
from helios_serve.benchmarks.targets.videos import ENDED, check_video, form_of
from helios_serve.errors import HeliosError, InvalidRequestError, StorageError

RUN_FILE = "helios_run.json"
FRAMES_PER_SECOND = 24
RETRY_SECONDS = 2.0
"""Seconds to wait after a refusal (429, 503), while the server is busy with other videos."""

Make = Callable[[BenchCase, Path], Awaitable[None]]
"""Makes the video of a case, and writes it to a file."""


class BenchRun(msgspec.Struct, frozen=True, kw_only=True):
    """How the videos of a folder were made."""

    model: str | None
    width: int | None
    height: int | None
    seed: int
    random_weights: bool
    version: str


class Made(NamedTuple):
    """The cases whose videos were made, existed already, or failed (with the reason).

    `seconds` is the time that all of it took.
    """

    made: list[BenchCase]
    kept: list[BenchCase]
    failed: dict[int, str]
    seconds: float

    @property
    def frames_per_second(self) -> float | None:
        """Frames of the videos that were made, divided by the time; None if none was made."""
        if not self.made:
            return None
        return sum(case.num_frames for case in self.made) / self.seconds


class ServerMaker:
    """Makes videos with a server that has `/v1/videos`."""

    def __init__(self, server: Server, run: BenchRun) -> None:
        self.server = server
        self.run = run

    async def __call__(self, case: BenchCase, target: Path) -> None:
        """Create a video, wait for it, and download it.

        Raises SessionFailedError if the server refuses it, or fails.
        """
        video = await self._create(case)
        while video["status"] not in ENDED:
            await asyncio.sleep(self.server.options.poll_interval)
            video = await self.server.json("GET", f"{VIDEOS}/{video['id']}", DEFAULT_TENANT)
        check_video(video)
        path = f"{VIDEOS}/{video['id']}/content"
        async with self.server.request("GET", path, DEFAULT_TENANT) as answer:
            write(target, await answer.read())

    async def _create(self, case: BenchCase) -> dict[str, Any]:
        request = SessionRequest(
            prompt=case.prompt,
            width=self.run.width,
            height=self.run.height,
            num_frames=case.num_frames,
            fps=FRAMES_PER_SECOND,
            seed=seed_of(case, self.run.seed),
        )
        body = body_of(request, self.server.options)
        is_form = self.server.options.backend in MULTIPART
        sent: dict[str, Any] = {"data": form_of(body)} if is_form else {"json": body}
        while True:
            with suppress(SessionRefusedError):
                return await self.server.json("POST", VIDEOS, DEFAULT_TENANT, **sent)
            if is_form:  # a form can be sent once
                sent = {"data": form_of(body)}
            await asyncio.sleep(RETRY_SECONDS)


def seed_of(case: BenchCase, seed: int) -> int:
    """Return the seed of a video: each has its own, and the same in every run."""
    return seed * 1_000_000 + case.id


async def make_videos(
    cases: Sequence[BenchCase],
    folder: Path,
    make: Make,
    *,
    at_once: int,
    on_end: Callable[[BenchCase, str | None], None],
) -> Made:
    """Make the videos that a folder lacks, `at_once` of them at a time.

    A video that fails does not stop the others. Raises HeliosError if the server is lost.
    """
    present = {video.case.id for video in find_videos(folder, list(cases))}
    kept = [case for case in cases if case.id in present]
    waiting = [case for case in cases if case.id not in present]
    made: list[BenchCase] = []
    failed: dict[int, str] = {}
    places = asyncio.Semaphore(at_once)
    begun = time.perf_counter()

    async def one(case: BenchCase) -> None:
        async with places:
            scratch = folder / f".{case.id}.mp4"
            try:
                await make(case, scratch)
                scratch.rename(folder / case.video_name(count_frames(scratch)))
            except UnreachableError as error:
                raise HeliosError(f"the server is lost: {error}") from error
            except (SessionFailedError, InvalidRequestError) as error:
                failed[case.id] = str(error)
            else:
                made.append(case)
            on_end(case, failed.get(case.id))

    try:
        async with asyncio.TaskGroup() as group:
            for case in waiting:
                group.create_task(one(case))
    except* (HeliosError, OSError) as errors:
        raise first_of(errors) from None
    return Made(made, kept, failed, time.perf_counter() - begun)


def first_of(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    found = errors.exceptions[0]
    return first_of(found) if isinstance(found, BaseExceptionGroup) else found


def count_frames(path: Path) -> int:
    """Count the frames of a video without decoding it. Raises SessionFailedError."""
    try:
        with av.open(str(path)) as container:
            return sum(1 for packet in container.demux(video=0) if packet.size)
    except (av.FFmpegError, IndexError) as error:
        path.unlink(missing_ok=True)
        raise SessionFailedError("invalid_media", f"not a video: {error}") from error


def begin_run(folder: Path, run: BenchRun) -> None:
    """Record how the videos of a folder are made.

    Raises InvalidRequestError if some of them were made in another way, and StorageError.
    """
    path = folder / RUN_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make {folder}: {error.strerror or error}") from error
    if path.exists():
        earlier = read_run(folder)
        if earlier != run:
            raise InvalidRequestError(
                f"{folder}: got videos made with {described(earlier)}, expected "
                f"{described(run)}: choose another --videos",
                param="videos",
            )
    write(path, msgspec.json.format(msgspec.json.encode(run), indent=2) + b"\n")


def read_run(folder: Path) -> BenchRun | None:
    """Return how the videos of a folder were made; None for those of other tools."""
    path = folder / RUN_FILE
    if not path.exists():
        return None
    return read_json(path, BenchRun, param="videos", expected="file that `generate` wrote")


def described(run: BenchRun | None) -> str:
    if run is None:
        return "another tool"
    size = f"{run.width}x{run.height}" if run.width else "the default size"
    return f"model {run.model}, {size}, seed {run.seed}, helios-serve {run.version}"
