"""API key authentication."""

from collections.abc import Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from helios_serve.entrypoints.http.responses import error_response
from helios_serve.errors import HeliosError
from helios_serve.options.scheduling import DEFAULT_TENANT
from helios_serve.service.errors import ApiError
from helios_serve.service.key_cache import KeyCache

TENANT = "helios.tenant"
"""Key of the ASGI scope that holds the name of the authenticated tenant."""
OPEN_PATHS = frozenset({"/", "/health", "/liveness", "/ping", "/version"})
METRICS_PATHS = frozenset({"/load", "/metrics"})
OPEN_FOLDERS = ("/playground/",)
"""Paths that need no key, because they contain no user data: server state and the playground's
files.
"""
KEY_PROTOCOL = "openai-insecure-api-key."
"""Prefix of a WebSocket subprotocol that carries the key: browsers cannot set headers there."""
PROTOCOLS = "sec-websocket-protocol"
POLICY_VIOLATION = 1008


class Authentication:
    """Middleware that stores the authenticated tenant in the scope, or responds with 401.

    While no key has ever been created, every request belongs to the default tenant. Keys in URLs
    are ignored, because URLs end up in logs. With `public_metrics`, /metrics and /load need none.
    """

    def __init__(self, app: ASGIApp, keys: KeyCache, *, public_metrics: bool = False) -> None:
        self.app = app
        self.keys = keys
        self.open_paths = OPEN_PATHS | (METRICS_PATHS if public_metrics else frozenset())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or self._is_open(scope["path"]):
            await self.app(scope, receive, send)
            return
        try:
            tenant = await self._tenant(scope)
        except (ApiError, HeliosError) as error:
            await refuse(error, scope, receive, send)
            return
        authenticated: Scope = {**scope, TENANT: tenant}
        if scope["type"] == "websocket":
            authenticated, send = without_key(authenticated, send)
        await self.app(authenticated, receive, send)

    def _is_open(self, path: str) -> bool:
        return path in self.open_paths or is_open(path)

    async def _tenant(self, scope: Scope) -> str:
        """Return the tenant of a request.

        Raises ApiError 401, or StorageError if the keys cannot be read.
        """
        ring = await self.keys.ring()
        if ring.is_open:
            return DEFAULT_TENANT
        secret = key_in(scope)
        if secret is None:
            raise unauthorized("missing API key, expected the header Authorization: Bearer KEY")
        key = ring.find(secret)
        if key is None:
            raise unauthorized("invalid API key: it is unknown or revoked")
        self.keys.note_use(key)
        return key.tenant


def is_open(path: str) -> bool:
    """Return whether a path needs no API key."""
    return path in OPEN_PATHS or path.startswith(OPEN_FOLDERS)


def unauthorized(message: str) -> ApiError:
    return ApiError(401, message, code="invalid_api_key")


def key_in(scope: Scope) -> str | None:
    """Return the key of a request, from its header or a WebSocket subprotocol; None without one."""
    kind, _, secret = Headers(scope=scope).get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and secret.strip():
        return secret.strip()
    for protocol in scope.get("subprotocols", ()):
        if protocol.startswith(KEY_PROTOCOL):
            return str(protocol.removeprefix(KEY_PROTOCOL))
    return None


def without_key(scope: Scope, send: Send) -> tuple[Scope, Send]:
    """Remove the key from a WebSocket's subprotocols, and accept one of the remaining ones.

    A browser closes the connection unless the server accepts a subprotocol that it offered. The key
    must not be sent back as that subprotocol.
    """
    offered = without_keys(scope.get("subprotocols", ()))
    headers = MutableHeaders(raw=list(scope["headers"]))
    del headers[PROTOCOLS]
    if offered:
        headers[PROTOCOLS] = ", ".join(offered)

    async def send_subprotocol(message: Message) -> None:
        if message["type"] == "websocket.accept" and offered and not message.get("subprotocol"):
            message = {**message, "subprotocol": offered[0]}
        await send(message)

    return {**scope, "subprotocols": offered, "headers": headers.raw}, send_subprotocol


def without_keys(protocols: Iterable[str]) -> list[str]:
    return [protocol for protocol in protocols if not protocol.startswith(KEY_PROTOCOL)]


async def refuse(error: ApiError | HeliosError, scope: Scope, receive: Receive, send: Send) -> None:
    """Send an error response. A WebSocket is closed instead, if the server cannot respond to it."""
    response = error_response(error)
    if response.status_code == 401:
        response.headers["www-authenticate"] = "Bearer"
    can_respond = "websocket.http.response" in (scope.get("extensions") or {})
    if scope["type"] == "websocket" and not can_respond:
        await send({"type": "websocket.close", "code": POLICY_VIOLATION})
        return
    await response(scope, receive, send)


def tenant_of(connection: HTTPConnection) -> str:
    """Return the authenticated tenant of a connection."""
    name: str = connection.scope.get(TENANT, DEFAULT_TENANT)
    return name
