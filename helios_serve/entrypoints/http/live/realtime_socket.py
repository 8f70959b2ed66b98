"""The WebSocket of a realtime client: typed messages, binary chunks and API errors."""

import asyncio
from contextlib import suppress

import msgspec
from starlette.websockets import WebSocket, WebSocketDisconnect

from helios_serve.service.errors import ApiError, as_api_error
from helios_serve.service.realtime.messages import (
    ChunkMetadata,
    ErrorMessage,
    ServerMessage,
)

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
