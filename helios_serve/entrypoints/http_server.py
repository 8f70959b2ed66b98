"""uvicorn, which says when it closes."""

import socket

import uvicorn
from starlette.applications import Starlette


class HttpServer(uvicorn.Server):
    """Tells an application's streams that have no end of their own when it is time to end."""

    def __init__(self, config: uvicorn.Config, app: Starlette) -> None:
        super().__init__(config)
        self.app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.app.state.closing.set()
        await super().shutdown(sockets)
