"""A span for each HTTP request."""

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from helios_serve.entrypoints.http.access import PROBES, STARTS, route_template
from helios_serve.entrypoints.http.paths import route_path
from helios_serve.spans import Spans


class RequestSpans:
    """Middleware that records a span for each request, up to the last byte of its response.

    It is named as the access log names requests: by method and route, without what clients write.
    Probes have no spans.
    """

    def __init__(self, app: ASGIApp, routes: Sequence[BaseRoute], spans: Spans) -> None:
        self.app = app
        self.routes = routes
        self.spans = spans

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or route_path(scope) in PROBES:
            await self.app(scope, receive, send)
            return
        with self.spans.request(Headers(scope=scope)) as span:
            method = scope.get("method", "WEBSOCKET")
            route = route_template(self.routes, scope)
            span.update_name(f"{method} {route}")
            span.set_attributes({"http.request.method": method, "http.route": route})

            async def send_noted(message: Message) -> None:
                if message["type"] in STARTS:
                    status = message.get("status", 101)
                    span.set_attribute("http.response.status_code", status)
                await send(message)

            await self.app(scope, receive, send_noted)
