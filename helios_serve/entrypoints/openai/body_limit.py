"""No request may be larger than it says, nor say that it is too large."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from helios_serve.entrypoints.openai.errors import ApiError

MAX_BODY = 512 << 20
"""Bytes of a request, uploads included."""


class BodyLimit:
    """Stops reading where a body exceeds `limit` bytes, also one that comes without its length."""

    def __init__(self, app: ASGIApp, limit: int = MAX_BODY) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.limit:
                raise ApiError(
                    413,
                    f"got a body that is too large, expected {self.limit} bytes at most",
                    code="too_large",
                )
            return message

        await self.app(scope, limited, send)
