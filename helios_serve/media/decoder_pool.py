"""Decodes references in separate processes, which isolates the server from malicious files.

A file that crashes or hangs its decoder, or exhausts its memory, ends that process only.
"""

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
    LENGTH_PREFIX,
    DecodeAnswer,
    Decoded,
    DecodeJob,
    DecodeLimits,
    MediaKind,
    Ready,
    encode_message,
)
from helios_serve.media.references import Reference
from helios_serve.video_request import Frames

NUM_PROCESSES = 2
MAX_WAITING = 32
JOBS_PER_PROCESS = 200
"""Jobs after which a process is replaced, which bounds memory leaks of the decoding libraries."""
START_SECONDS = 60.0
STOP_SECONDS = 5.0
MODULE = "helios_serve.media.decoder_process"
INHERITED_ENVIRONMENT = (
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
"""Variables that a process gets from the server: no others, which may hold secrets."""
OWN_ENVIRONMENT = {"MALLOC_ARENA_MAX": "2", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
"""Limits threads and arenas, which would take most of the limited address space."""

Message = TypeVar("Message")


class DecoderEndedError(Exception):
    """The process ended before it answered. The message is a signal name or an exit status."""


class Decoder:
    """A decoder process, which runs one job at a time.

    `jobs` counts the jobs that it was given.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.jobs = 0

    @classmethod
    async def start(cls, limits: DecodeLimits) -> "Decoder":
        """Start a process with `limits` and wait until it is ready. Raises HeliosError."""
        inherited = {name: os.environ[name] for name in INHERITED_ENVIRONMENT if name in os.environ}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", MODULE, msgspec.json.encode(limits).decode()),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=inherited | OWN_ENVIRONMENT,
        )
        decoder = cls(process)
        try:
            async with asyncio.timeout(START_SECONDS):
                await decoder._read(Ready)
        except BaseException as error:
            await decoder.kill()
            if isinstance(error, TimeoutError | DecoderEndedError):
                raise HeliosError(f"cannot start a decoder process: {error}") from error
            raise
        return decoder

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_usable(self) -> bool:
        return self._process.returncode is None and self.jobs < JOBS_PER_PROCESS

    async def run(self, job: DecodeJob) -> DecodeAnswer:
        """Run a job and return its answer. Raises DecoderEndedError if the process ends.

        After an exception, cancellation included, the process must be killed.
        """
        assert self._process.stdin is not None
        self.jobs += 1
        try:
            self._process.stdin.write(encode_message(job))
            await self._process.stdin.drain()
        except ConnectionError:
            await self._process.wait()
            raise DecoderEndedError(self._exit_reason()) from None
        return await self._read(DecodeAnswer)  # type: ignore[arg-type]

    async def kill(self) -> None:
        """Kill the process. SIGKILL also ends a process that is stopped or hangs."""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()

    async def close(self) -> None:
        """Let the process exit, as it does when its input is closed; kill it if it does not."""
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
            prefix = await self._process.stdout.readexactly(LENGTH_PREFIX.size)
            data = await self._process.stdout.readexactly(LENGTH_PREFIX.unpack(prefix)[0])
        except asyncio.IncompleteReadError:
            await self._process.wait()
            raise DecoderEndedError(self._exit_reason()) from None
        return msgspec.msgpack.decode(data, type=kind)

    def _exit_reason(self) -> str:
        code = self._process.returncode
        if code is not None and code < 0:
            return signal.Signals(-code).name
        return f"status {code}"


class DecoderPool:
    """A pool of decoder processes, which are started on demand.

    An asynchronous context manager: leaving it ends the processes. `folder` holds temporary
    results. At most `size` references are decoded at the same time and `max_waiting` wait.
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
        """Empty the folder, in which a killed server may have left results."""
        await asyncio.to_thread(shutil.rmtree, self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, mode=0o700)
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(decoder.close() for decoder in self.idle))
        self.idle.clear()

    async def decode(
        self, path: Path, *, width: int, height: int, kind: MediaKind | None, name: str, param: str
    ) -> Reference:
        """Decode the file `path` into frames of `width` x `height` pixels.

        Errors name the file `name` and the request field `param`. If the process dies, for example
        because the system is out of memory, another one retries once. Raises InvalidRequestError
        for a file that cannot be decoded within the limits, and CapacityError if too many
        references are waiting.
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
                logger.warning("decoder process ended: %s", error)
                return await self._run(job, fresh=True)
        except TimeoutError:
            got = f"a file whose decoding takes more than {self.limits.seconds:g} seconds"
        except DecoderEndedError as error:
            if str(error) == "SIGXCPU":
                seconds = self.limits.cpu_seconds
                got = f"a file whose decoding takes more than {seconds} seconds of CPU time"
            else:
                got = f"a file that crashes the decoder process ({error})"
        raise InvalidRequestError(
            f"{name}: got {got}, expected a valid image or a shorter video", param=param
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
        """Return an idle process, unless `fresh` is set, or a new one."""
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
                f"queue is full: {self._waiting} references waiting to be decoded "
                f"(limit {self.max_waiting})",
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
