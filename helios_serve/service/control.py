"""Control socket: other processes of the same user list and change an engine's workers.

It is a Unix socket in the data folder that only its owner can open. Each connection carries one
JSON command and one JSON reply, each on one line.
"""

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import msgspec

from helios_serve.engine.loop.worker_handle import WorkerReport
from helios_serve.engine.requests.async_engine import AsyncEngine
from helios_serve.errors import HeliosError, InvalidRequestError
from helios_serve.options.workers import WorkerConfig, WorkerGroup

SOCKET_NAME = "control.sock"
ANSWER_SECONDS = 30.0
MAX_LINE = 1 << 20
MAX_NAME = 100


class ControlCommand(msgspec.Struct, frozen=True):
    """A command to the engine.

    `model` may be left out if the engine has one model. `worker_id` is the worker to drain. `group`
    describes the workers to add; None adds one worker like the model's first.
    """

    action: Literal["list", "add", "drain"]
    model: str | None = None
    worker_id: str | None = None
    group: WorkerGroup | None = None


class ControlReply(msgspec.Struct, frozen=True):
    """A reply: the workers by model, the ids of the added workers, or an error message."""

    workers: dict[str, list[WorkerReport]] = {}
    added: tuple[str, ...] = ()
    error: str | None = None


class ControlServer:
    """An asynchronous context manager that serves commands at the socket in `folder`."""

    def __init__(self, engine: AsyncEngine, folder: Path) -> None:
        self.engine = engine
        self.path = folder / SOCKET_NAME
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "ControlServer":
        # Left by a killed process: the folder's lock excludes another running server.
        self.path.unlink(missing_ok=True)
        old_umask = os.umask(0o177)
        try:
            with socket_address(self.path) as name:
                self._server = await asyncio.start_unix_server(self._serve, name, limit=MAX_LINE)
        finally:
            os.umask(old_umask)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the socket.

        Does not wait for clients, which may have connected and sent nothing.
        """
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with suppress(ConnectionError):  # the client may not wait for the reply
                writer.write(msgspec.json.encode(await self._answer(reader)) + b"\n")
                await writer.drain()
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _answer(self, reader: asyncio.StreamReader) -> ControlReply:
        try:
            return await self._execute(
                msgspec.json.decode(await reader.readline(), type=ControlCommand)
            )
        except (HeliosError, msgspec.DecodeError, ValueError) as error:
            return ControlReply(error=str(error))

    async def _execute(self, command: ControlCommand) -> ControlReply:
        match command.action:
            case "list":
                return ControlReply(workers=await self.engine.models.workers())
            case "add":
                return ControlReply(added=await self._add(command))
            case "drain":
                await self.engine.models.drain_worker(command.worker_id or "", command.model)
                return ControlReply()

    async def _add(self, command: ControlCommand) -> tuple[str, ...]:
        count, config = 1, None
        if command.group is not None:
            like = self.engine.models.worker_config(command.model)
            asked: WorkerConfig = command.group.config
            count = command.group.count
            config = msgspec.structs.replace(like, roles=asked.roles, resources=asked.resources)
        return tuple(
            [await self.engine.models.add_worker(command.model, config) for _ in range(count)]
        )


def send_command(folder: Path, command: ControlCommand) -> ControlReply:
    """Send a command to the engine that runs in `folder`, and return its reply.

    Raises InvalidRequestError if no engine runs there, or if it rejects the command.
    """
    path = folder / SOCKET_NAME
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(ANSWER_SECONDS)
        try:
            with socket_address(path) as name:
                connection.connect(name)
            connection.sendall(msgspec.json.encode(command) + b"\n")
            with connection.makefile("rb") as answers:
                answer = msgspec.json.decode(answers.readline(), type=ControlReply)
        except (OSError, msgspec.DecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InvalidRequestError(
                f"no engine is running at {path}: {reason}", param="data-dir"
            ) from error
    if answer.error is not None:
        raise InvalidRequestError(answer.error, param="worker")
    return answer


@contextmanager
def socket_address(path: Path) -> Iterator[str]:
    """Yield an address of the socket that is short enough for the system.

    Unix socket addresses are limited to about 100 bytes. A longer path is reached through a file
    descriptor of its folder.
    """
    if len(os.fsencode(path)) <= MAX_NAME:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
