"""A realtime client's socket, and the stream of a session's chunks to it."""

import asyncio
from contextlib import aclosing, suppress

import msgspec
from starlette.websockets import WebSocket, WebSocketDisconnect

from helios_serve.engine.requests.chunk_stream import VideoChunk
from helios_serve.engine.requests.stored_stream import CANCELLED
from helios_serve.errors import StorageError
from helios_serve.model_config import frames_of_chunk
from helios_serve.service.errors import ApiError, as_api_error, not_found
from helios_serve.service.realtime.messages import (
    ChunkMetadata,
    ErrorMessage,
    ServerMessage,
    SessionDone,
)
from helios_serve.service.realtime.sessions import (
    RealtimeSession,
    RealtimeSessions,
)
from helios_serve.service.videos.videos import Videos
from helios_serve.store.jobs import StoredJob

CLOSE_SECONDS = 1.0


class DisconnectedError(Exception):
    """The client disconnected."""


class ClientSocket:
    """A WebSocket with backpressure: sending waits for a slow client, and nothing is queued."""

    def __init__(self, socket: WebSocket) -> None:
        self.socket = socket
        self._sending = asyncio.Lock()
        self._is_gone = False

    async def receive(self) -> str:
        """Return the next text message.

        Raises ApiError for a binary message, and DisconnectedError when the client disconnects.
        """
        message = await self.socket.receive()
        if message["type"] == "websocket.disconnect":
            self._is_gone = True
            raise DisconnectedError
        text: str | None = message.get("text")
        if text is None:
            raise ApiError(400, "got a binary message, expected JSON text", code="invalid_message")
        return text

    async def send(self, message: ServerMessage) -> None:
        """Send a message. Raises DisconnectedError."""
        async with self._sending:
            await self._send(message)

    async def send_chunk(self, metadata: ChunkMetadata, data: bytes) -> None:
        """Send a chunk's metadata and data, with no other message between them.

        Raises DisconnectedError.
        """
        async with self._sending:
            await self._send(metadata)
            await self._send(data)

    async def send_error(
        self,
        error: Exception,
        *,
        code: str | None = None,
        request_id: str | None = None,
        event_id: str | None = None,
    ) -> None:
        """Send an error. `code` replaces the error's own code. Raises DisconnectedError."""
        api_error = as_api_error(error)
        message = ErrorMessage(
            api_error.detail.message,
            code or api_error.detail.code,
            request_id,
            event_id,
            api_error.detail.param,
            api_error.retry_after,
        )
        await self.send(message)

    async def close(self, code: int, reason: str) -> None:
        """Close the connection, and wait at most CLOSE_SECONDS for the client."""
        with suppress(TimeoutError, DisconnectedError, WebSocketDisconnect):
            async with asyncio.timeout(CLOSE_SECONDS):
                if not self._is_gone:
                    self._is_gone = True
                    await self.socket.close(code, reason)

    async def _send(self, message: ServerMessage | bytes) -> None:
        if self._is_gone:
            raise DisconnectedError
        try:
            if isinstance(message, bytes):
                await self.socket.send_bytes(message)
            else:
                await self.socket.send_text(msgspec.json.encode(message).decode())
        except WebSocketDisconnect as error:
            self._is_gone = True
            raise DisconnectedError from error


class SessionStream:
    """Sends chunks as they are generated, until the video is finished or stopped.

    A chunk is read from the store only when the client can receive it. The engine pauses a video
    whose client is too far behind.
    """

    def __init__(
        self,
        session: RealtimeSession,
        videos: Videos,
        client: ClientSocket,
        sessions: RealtimeSessions,
        *,
        with_header: bool,
    ) -> None:
        self.session = session
        self.videos = videos
        self.client = client
        self.sessions = sessions
        self.num_sent = 0
        self.is_stopped = False
        self._with_header = with_header
        self._last: int | None = None

    async def run(self, first: int) -> SessionDone:
        """Send the chunks from `first` on. Raises DisconnectedError.

        Returns the message that reports the end. The caller sends it once another session can be
        started.
        """
        video_id = self.session.video_id
        failure: Exception | None = None
        try:
            await self._send_chunks(first)
            if self.is_stopped:
                await self.sessions.abort(video_id)
        except DisconnectedError:
            raise
        except Exception as error:
            failure = error
        if failure is not None and str(failure) != CANCELLED:
            await self.client.send_error(failure, request_id=video_id)
        ended_early = self.is_stopped or failure is not None
        return SessionDone(video_id, self.num_sent, ended_early)

    async def stop(self) -> None:
        """Stop after the chunk under way, and abort the video."""
        self.is_stopped = True
        job = await self._job()
        progress = await self.videos.engine.progress(job.id)
        self._last = job.next_chunk
        if progress is not None and progress.phase in ("encoding", "queued"):
            await self.sessions.abort(job.id)  # no chunk is under way

    async def is_finished(self) -> bool:
        """Return whether the video is known to be finished or deleted."""
        try:
            return (await self._job()).is_finished
        except StorageError:
            return False
        except ApiError:  # deleted
            return True

    async def _send_chunks(self, first: int) -> None:
        async with aclosing(self.videos.engine.watch(self.session.video_id, first)) as chunks:
            async for chunk in chunks:
                await self._send(chunk)
                if self._last is not None and chunk.index >= self._last:
                    return

    async def _send(self, chunk: VideoChunk) -> None:
        assert chunk.segment is not None, "stored videos come in segments"
        job = await self._job()
        params = job.request.params
        data = chunk.segment.fragment
        if self._with_header and not self.num_sent:
            data = chunk.segment.header + data
        events = self.session.events_at(chunk.index, params)
        metadata = ChunkMetadata(
            request_id=job.id,
            num_frames=frames_of_chunk(params.num_frames, chunk.index).length,
            byte_length=len(data),
            generation_chunk_index=chunk.index,
            transport_chunk_index=self.num_sent,
            started_event_ids=events.started,
            active_event_ids=events.active,
            completed_event_ids=events.completed,
        )
        await self.client.send_chunk(metadata, data)
        self.num_sent += 1

    async def _job(self) -> StoredJob:
        job = await asyncio.to_thread(self.videos.store.job, self.session.video_id)
        if job is None:  # deleted meanwhile
            raise not_found(self.session.video_id)
        return job
