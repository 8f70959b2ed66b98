"""The header that names a server's cell."""

from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from helios_serve.entrypoints.http.access import STARTS
from helios_serve.entrypoints.http.authentication import refuse
from helios_serve.service.ids import other_cell

HEADER, QUERY = "x-helios-cell", "cell"


class CellHeader:
    """Middleware that names the cell in every response, and refuses requests for another one.

    A client names the cell of a request without an id, such as a list, in the header
    `x-helios-cell`, or as `?cell=` where it cannot set headers.
    """

    def __init__(self, app: ASGIApp, cell: str) -> None:
        self.app = app
        self.cell = cell

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return

        async def send_cell(message: Message) -> None:
            if message["type"] in STARTS:
                MutableHeaders(scope=message)[HEADER] = self.cell
            await send(message)

        wanted = wanted_cell(scope)
        if wanted in (None, self.cell):
            await self.app(scope, receive, send_cell)
        else:
            error = other_cell("a request", str(wanted), self.cell)
            await refuse(error, scope, receive, send_cell)


def wanted_cell(scope: Scope) -> str | None:
    """Return the cell that a request names; None if it names none."""
    header = Headers(scope=scope).get(HEADER)
    if header is not None:
        return header
    queried = parse_qs(scope.get("query_string", b"").decode("latin-1")).get(QUERY)
    return queried[0] if queried else None
