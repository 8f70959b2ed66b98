"""Live sessions over the WebSocket `/v1/realtime/video`: vLLM-Omni's protocol."""

import asyncio
import json
from contextlib import suppress
from typing import Any
from uuid import uuid4

import aiohttp

from helios_serve.benchmarks.load.clock import LoadClock
from helios_serve.benchmarks.load.request import SessionRequest
from helios_serve.benchmarks.measure.record import ChunkRecord, SessionRecord, SwitchRecord
from helios_serve.benchmarks.targets.dialects import body_of
from helios_serve.benchmarks.targets.server import Server, error_of
from helios_serve.benchmarks.targets.target import (
    SessionFailedError,
    SessionRefusedError,
    UnreachableError,
)

PATH = "/v1/realtime/video"
CAPACITY = ("queue_full", "tenant_quota", "realtime_capacity", "shutting_down", "too_many_sessions")
"""Codes of errors that refuse a session for lack of capacity."""

Message = dict[str, Any]


class RealtimeTarget:
    """Sessions are live: chunks come as binary messages."""

    def __init__(self, server: Server, clock: LoadClock) -> None:
        self.server = server
        self.clock = clock

    async def run(self, request: SessionRequest, record: SessionRecord) -> None:
        """Start a session, and receive its chunks to the end."""
        start = {"type": "session.start", "format": "m4s"} | body_of(request, self.server.options)
        record.sent = self.clock.now()
        try:
            async with self.server.http.ws_connect(
                self.server.base_url + PATH,
                headers=self.server.headers(record.tenant),
                max_msg_size=0,
                heartbeat=None,
            ) as socket:
                await socket.send_json(start)
                switching = asyncio.create_task(self._switch(socket, request, record))
                try:
                    await self._receive(socket, record)
                except asyncio.CancelledError:
                    with suppress(ConnectionError):
                        await socket.send_json({"type": "session.stop"})
                    raise
                finally:
                    switching.cancel()
                    await asyncio.wait((switching,))
        except aiohttp.WSServerHandshakeError as error:
            raise error_of(error.status, error.message.encode()) from error
        except (aiohttp.ClientError, OSError) as error:
            raise UnreachableError(f"{type(error).__name__}: {error}") from error

    async def leave(self, record: SessionRecord) -> None:
        """Nothing to do: `run` stops the session when it is cancelled."""

    async def _receive(
        self, socket: aiohttp.ClientWebSocketResponse, record: SessionRecord
    ) -> None:
        """Receive messages until `session.done`. Raises SessionFailedError."""
        metadata: Message | None = None
        while True:
            message = await socket.receive()
            at = self.clock.now()
            if message.type is aiohttp.WSMsgType.BINARY and metadata is not None:
                note_chunk(
                    record, metadata, ChunkRecord(at, frames_of(metadata), len(message.data))
                )
                metadata = None
            elif message.type is aiohttp.WSMsgType.TEXT:
                fields = json.loads(message.data)
                if fields.get("type") == "video.chunk_metadata":
                    metadata = fields
                elif self._take(fields, record, at):
                    return
            elif message.type is not aiohttp.WSMsgType.BINARY:
                raise UnreachableError(f"the server closed the WebSocket ({socket.close_code})")

    def _take(self, message: Message, record: SessionRecord, at: float) -> bool:
        """Take a message other than a chunk. Return whether the session has ended."""
        match message.get("type"):
            case "video.start":
                record.accepted = at
                record.video_id = message.get("request_id")
            case "session.done":
                if message.get("stopped") or record.frames < record.num_frames:
                    raise SessionFailedError(
                        "incomplete", f"got {record.frames} frames, expected {record.num_frames}"
                    )
                return True
            case "error" if not message.get("event_id"):
                raise error_from(message, is_accepted=record.accepted is not None)
        return False

    async def _switch(
        self,
        socket: aiohttp.ClientWebSocketResponse,
        request: SessionRequest,
        record: SessionRecord,
    ) -> None:
        """Switch the prompt at its times, or as soon as the session has started."""
        for milliseconds, prompt in request.switches:
            await self.clock.sleep_until(record.intended + milliseconds / 1000)
            while record.accepted is None:
                await asyncio.sleep(0.01)
            switch = SwitchRecord(uuid4().hex, self.clock.now())
            record.switches.append(switch)
            interaction = {"event_id": switch.event_id, "event": {"prompt": prompt}}
            with suppress(ConnectionError):
                await socket.send_json({"type": "session.interaction", "interaction": interaction})


def note_chunk(record: SessionRecord, metadata: Message, chunk: ChunkRecord) -> None:
    """Record a chunk, and the switches that it is the first one of. A trailer has no frames."""
    started = metadata.get("started_event_ids") or ()
    for switch in record.switches:
        if switch.seen is None and switch.event_id in started:
            switch.seen, switch.chunk = chunk.at, len(record.chunks)
    if chunk.frames and metadata.get("kind", "media") == "media":
        record.chunks.append(chunk)


def frames_of(metadata: Message) -> int:
    return int(metadata.get("num_frames") or 0)


def error_from(message: Message, *, is_accepted: bool) -> Exception:
    code, text = str(message.get("code")), str(message.get("message"))
    if not is_accepted and (code in CAPACITY or message.get("retry_after") is not None):
        return SessionRefusedError(code, text)
    return SessionFailedError(code, text)
