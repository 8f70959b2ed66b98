"""What is recorded of each HTTP request: its id, a log line, metrics, and a span."""

import logging
import re
import secrets
import time
from collections.abc import Sequence

from asgi_correlation_id import CorrelationIdMiddleware
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.routing import BaseRoute, Match, Route, WebSocketRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from helios_serve.entrypoints.http.paths import route_path
from helios_serve.entrypoints.http.responses import error_response
from helios_serve.logger import logger
from helios_serve.metrics import HttpMetrics
from helios_serve.spans import Spans

VALID_ID = re.compile(r"[\x21-\x7e]{1,128}")
"""Request ids of clients that are kept: printable ASCII without spaces."""
PROBES = frozenset({"/health", "/liveness", "/ping", "/load", "/metrics", "/version"})
"""Paths that monitors read again and again, logged at level DEBUG."""
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
CLIENT_GONE = 499
STARTS = ("http.response.start", "websocket.accept", "websocket.http.response.start")
"""Messages that begin a response."""


def kept_or_new(request_id: str) -> str:
    """Return a client's request id, or a new one if it is not valid."""
    return request_id if VALID_ID.fullmatch(request_id) else new_request_id()


def new_request_id() -> str:
    return f"req_{secrets.token_hex(16)}"


def request_ids() -> Middleware:
    """Middleware that takes `x-request-id` from a request, or makes one, for its response and for
    every log record that the request causes.
    """
    return Middleware(
        CorrelationIdMiddleware,
        header_name="x-request-id",
        generator=new_request_id,
        validator=None,
        transformer=kept_or_new,
    )


class AccessLog:
    """Middleware that logs and counts requests, and answers unexpected errors with 500.

    A line has the method, the path of the route, the status, the time until the last byte, and the
    client's address. What clients write into paths, queries and headers is not logged.
    """

    def __init__(
        self, app: ASGIApp, routes: Sequence[BaseRoute], metrics: HttpMetrics, *, is_logged: bool
    ) -> None:
        self.app = app
        self.routes = routes
        self.metrics = metrics
        self.is_logged = is_logged

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0

        async def send_with_time(message: Message) -> None:
            nonlocal status
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                status = message["status"]
                milliseconds = 1e3 * (time.perf_counter() - started)
                MutableHeaders(scope=message)["openai-processing-ms"] = f"{milliseconds:.0f}"
            elif message["type"] == "websocket.accept":
                status = 101
            await send(message)

        try:
            await self.app(scope, receive, send_with_time)
        except Exception as error:
            if status or scope["type"] != "http":
                raise  # the response is incomplete: the server closes the connection
            logger.error("%s %s failed", scope["method"], self._handler(scope), exc_info=error)
            await error_response(error)(scope, receive, send_with_time)
        finally:
            self._record(scope, status or CLIENT_GONE, time.perf_counter() - started)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        method = scope.get("method", "WEBSOCKET")
        handler = self._handler(scope)
        label = method if method in METHODS or method == "WEBSOCKET" else "other"
        self.metrics.requests.labels(handler, label, str(status)).inc()
        self.metrics.seconds.labels(handler, label).observe(seconds)
        if not self.is_logged:
            return
        level = logging.DEBUG if route_path(scope) in PROBES else logging.INFO
        client = (scope.get("client") or ("-",))[0]
        line = "%s %s %d in %.0f ms for %s"
        logger.log(level, line, method, handler, status, 1e3 * seconds, client)

    def _handler(self, scope: Scope) -> str:
        """Return the path of the route, so that the label takes few values."""
        return route_template(self.routes, scope)


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


def route_template(routes: Sequence[BaseRoute], scope: Scope) -> str:
    """Return the path of a request's route, such as /v1/videos/{video_id}; "none" without one."""
    for route in routes:
        if isinstance(route, Route | WebSocketRoute) and route.matches(scope)[0] != Match.NONE:
            return route.path
    return "none"
