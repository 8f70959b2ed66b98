"""Processes that decode references, so that a bomb, a crash or a hang is not the server's."""

import asyncio
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from helios_serve.errors import CapacityError, HeliosError, InvalidRequestError
from helios_serve.logger import logger
from helios_serve.media.decode_job import (
    HEAD,
    DecodeAnswer,
    Decoded,
    DecodeJob,
    DecodeLimits,
    MediaKind,
    Ready,
    packed,
)
from helios_serve.media.references import Reference
from helios_serve.video_request import Frames

NUM_PROCESSES = 2
MAX_WAITING = 32
JOBS_PER_PROCESS = 200
"""After which a process is replaced, so that what its decoders leak does not add up."""
START_SECONDS = 60.0
STOP_SECONDS = 5.0
MODULE = "helios_serve.media.decoder_process"
KEPT_ENVIRONMENT = (
    "HOME",
    "LANG",
    "LC_ALL",
    "LD_LIBRARY_PATH",
    "PATH",
    "PYTHONHOME",
    "PYTHONPATH",
    "TMPDIR",
    "VIRTUAL_ENV",
)
OWN_ENVIRONMENT = {"MALLOC_ARENA_MAX": "2", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
"""Address space is limited, and threads that wait for work would take most of it."""

Message = TypeVar("Message")


class DecoderEndedError(Exception):
    """The process ended before it answered; says how."""


class Decoder:
    """One process, which does one job at a time."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.jobs = 0

    @classmethod
    async def start(cls, limits: DecodeLimits) -> "Decoder":
        """Raises HeliosError."""
        kept = {name: os.environ[name] for name in KEPT_ENVIRONMENT if name in os.environ}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", MODULE, msgspec.json.encode(limits).decode()),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=kept | OWN_ENVIRONMENT,
        )
        decoder = cls(process)
        try:
            async with asyncio.timeout(START_SECONDS):
                await decoder._read(Ready)
        except BaseException as error:
            await decoder.kill()
            if isinstance(error, TimeoutError | DecoderEndedError):
                raise HeliosError(f"no process that decodes references starts: {error}") from error
            raise
        return decoder

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_usable(self) -> bool:
        return self._process.returncode is None and self.jobs < JOBS_PER_PROCESS

    async def run(self, job: DecodeJob) -> DecodeAnswer:
        """Raises DecoderEndedError; after that, or if it is cancelled, it has to be killed."""
        assert self._process.stdin is not None
        self.jobs += 1
        try:
            self._process.stdin.write(packed(job))
            await self._process.stdin.drain()
        except ConnectionError:
            await self._process.wait()
            raise DecoderEndedError(self._how_it_ended()) from None
        return await self._read(DecodeAnswer)  # type: ignore[arg-type]

    async def kill(self) -> None:
        """SIGKILL also ends a process that is stopped or hangs."""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()

    async def close(self) -> None:
        """It ends when nobody gives it jobs any more."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self._process.wait()
        except TimeoutError:
            await self.kill()

    async def _read(self, kind: type[Message]) -> Message:
        assert self._process.stdout is not None
        try:
            head = await self._process.stdout.readexactly(HEAD.size)
            data = await self._process.stdout.readexactly(HEAD.unpack(head)[0])
        except asyncio.IncompleteReadError:
            await self._process.wait()
            raise DecoderEndedError(self._how_it_ended()) from None
        return msgspec.msgpack.decode(data, type=kind)

    def _how_it_ended(self) -> str:
        code = self._process.returncode
        if code is not None and code < 0:
            return signal.Signals(-code).name
        return f"status {code}"


class DecoderPool:
    """A few processes, started when there is something to decode.

    `folder` is for results on their way. An asynchronous context; the processes end with it.
    """

    def __init__(
        self,
        folder: Path,
        *,
        size: int = NUM_PROCESSES,
        limits: DecodeLimits | None = None,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        self.folder = folder
        self.limits = limits or DecodeLimits()
        self.max_waiting = max_waiting
        self.busy: set[Decoder] = set()
        self.idle: list[Decoder] = []
        self._slots = asyncio.Semaphore(size)
        self._waiting = 0

    async def __aenter__(self) -> "DecoderPool":
        """What a killed server has left in the folder goes."""
        await asyncio.to_thread(shutil.rmtree, self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, mode=0o700)
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(decoder.close() for decoder in self.idle))
        self.idle.clear()

    async def decode(
        self, path: Path, *, width: int, height: int, kind: MediaKind | None, name: str, param: str
    ) -> Reference:
        """The reference in the file `path`, which a client knows by `name`, in field `param`.

        A process that dies may have been killed by somebody else, so another one tries once more.
        Raises InvalidRequestError for what cannot be decoded, or not within the limits, and
        CapacityError where too many wait.
        """
        async with self._slot():
            with tempfile.TemporaryDirectory(dir=self.folder, prefix="frames-") as scratch:
                result = Path(scratch) / "frames"
                job = DecodeJob(str(path), str(result), width, height, kind)
                answer = await self._answer(job, name, param)
                if isinstance(answer, Decoded):
                    data = await asyncio.to_thread(result.read_bytes)
                    frames = Frames(data, answer.count, height, width, answer.skipped)
                    return Reference(answer.kind, frames)
                raise InvalidRequestError(f"{name}: {answer.message}", param=param)

    async def _answer(self, job: DecodeJob, name: str, param: str) -> DecodeAnswer:
        try:
            try:
                return await self._run(job)
            except DecoderEndedError as error:
                if str(error) == "SIGXCPU":
                    raise
                logger.warning("a process that decodes references ended: %s", error)
                return await self._run(job, fresh=True)
        except TimeoutError:
            got = f"a file whose decoding takes more than {self.limits.seconds:g} seconds"
        except DecoderEndedError as error:
            if str(error) == "SIGXCPU":
                seconds = self.limits.cpu_seconds
                got = f"a file whose decoding takes more than {seconds} seconds of a processor"
            else:
                got = f"a file that ends the process which decodes it ({error})"
        raise InvalidRequestError(
            f"{name}: got {got}, expected a picture or a shorter video that is whole", param=param
        )

    async def _run(self, job: DecodeJob, *, fresh: bool = False) -> DecodeAnswer:
        decoder = await self._take(fresh)
        self.busy.add(decoder)
        try:
            async with asyncio.timeout(self.limits.seconds):
                answer = await decoder.run(job)
        except BaseException:
            await decoder.kill()
            raise
        finally:
            self.busy.discard(decoder)
        if decoder.is_usable:
            self.idle.append(decoder)
        else:
            await decoder.close()
        return answer

    async def _take(self, fresh: bool) -> Decoder:
        """One that waits for work, or a new one."""
        while self.idle and not fresh:
            decoder = self.idle.pop()
            if decoder.is_usable:
                return decoder
            await decoder.kill()
        return await Decoder.start(self.limits)

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        if self._waiting >= self.max_waiting:
            raise CapacityError(
                f"{self._waiting} references wait to be decoded, expected fewer than "
                f"{self.max_waiting}",
                code="queue_full",
            )
        self._waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._slots.release()
