"""The socket of a realtime client: whole messages out, text in, errors in the API's words."""

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


class GoneError(Exception):
    """The client has gone."""


class ClientSocket:
    """Sending waits for a client that does not read, and queues nothing for it."""

    def __init__(self, socket: WebSocket) -> None:
        self.socket = socket
        self._sending = asyncio.Lock()
        self._is_gone = False

    async def receive(self) -> str:
        """The next message; raises ApiError for one that is no text, GoneError behind the last."""
        message = await self.socket.receive()
        if message["type"] == "websocket.disconnect":
            self._is_gone = True
            raise GoneError
        text: str | None = message.get("text")
        if text is None:
            raise ApiError(400, "got a binary message, expected JSON text", code="invalid_message")
        return text

    async def tell(self, message: ServerMessage) -> None:
        """Raises GoneError."""
        async with self._sending:
            await self._send(message)

    async def tell_chunk(self, metadata: ChunkMetadata, data: bytes) -> None:
        """Two messages with no other between them. Raises GoneError."""
        async with self._sending:
            await self._send(metadata)
            await self._send(data)

    async def tell_error(
        self,
        error: Exception,
        *,
        code: str | None = None,
        request_id: str | None = None,
        event_id: str | None = None,
    ) -> None:
        """Raises GoneError."""
        told = as_api_error(error)
        message = ErrorMessage(
            told.detail.message,
            code or told.detail.code,
            request_id,
            event_id,
            told.detail.param,
            told.retry_after,
        )
        await self.tell(message)

    async def close(self, code: int, reason: str) -> None:
        """Say goodbye, unless the client takes too long to listen."""
        with suppress(TimeoutError, GoneError, WebSocketDisconnect):
            async with asyncio.timeout(CLOSE_SECONDS):
                if not self._is_gone:
                    self._is_gone = True
                    await self.socket.close(code, reason)

    async def _send(self, message: ServerMessage | bytes) -> None:
        if self._is_gone:
            raise GoneError
        try:
            if isinstance(message, bytes):
                await self.socket.send_bytes(message)
            else:
                await self.socket.send_text(msgspec.json.encode(message).decode())
        except WebSocketDisconnect as error:
            self._is_gone = True
            raise GoneError from error
