"""API key authentication."""

from collections.abc import Callable, Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from helios_serve.entrypoints.http.paths import route_path
from helios_serve.entrypoints.http.responses import error_response
from helios_serve.errors import HeliosError
from helios_serve.options.scheduling import DEFAULT_TENANT
from helios_serve.service.errors import ApiError
from helios_serve.service.key_cache import KeyCache
from helios_serve.store.keys import ApiKey

TENANT = "helios.tenant"
"""Key of the ASGI scope that holds the name of the authenticated tenant."""
AUTHORITY = "helios.authority"
"""Key of the ASGI scope that holds the `Authority` of the request."""
ACCEPTED = "helios.accepted"
"""Key of the ASGI scope that holds a function to call when a request is authenticated."""
OPEN_PATHS = frozenset({"/", "/health", "/liveness", "/ping", "/version"})
METRICS_PATHS = frozenset({"/load", "/metrics"})
OPEN_FOLDERS = ("/playground/",)
"""Paths that need no key, because they contain no user data: server state and the playground's
files.
"""
MISSING_KEY = "missing API key, expected the header Authorization: Bearer KEY"
INVALID_KEY = "invalid API key: it is unknown or revoked"
KEY_PROTOCOL = "openai-insecure-api-key."
"""Prefix of a WebSocket subprotocol that carries the key: browsers cannot set headers there."""
PROTOCOLS = "sec-websocket-protocol"
POLICY_VIOLATION = 1008


class Authority:
    """The right of a connection to give orders: its key, or None while no key is needed.

    A key may be revoked while a connection is open, so it is checked again for each order.
    """

    def __init__(self, keys: KeyCache, key: ApiKey | None) -> None:
        self.keys = keys
        self.key = key

    async def check(self) -> None:
        """Raise ApiError 401 if the key was revoked, or one is needed now. Raises StorageError."""
        ring = await self.keys.ring()
        if self.key is None and not ring.is_open:
            raise unauthorized(MISSING_KEY)
        if self.key is not None and self.key.hash not in ring.keys:
            raise unauthorized(INVALID_KEY)

    @property
    def tenant(self) -> str:
        return DEFAULT_TENANT if self.key is None else self.key.tenant


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
        if scope["type"] not in ("http", "websocket") or self._is_open(route_path(scope)):
            await self.app(scope, receive, send)
            return
        try:
            authority = await self._authority(scope)
        except (ApiError, HeliosError) as error:
            await refuse(error, scope, receive, send)
            return
        accepted: Callable[[], None] | None = scope.get(ACCEPTED)
        if accepted is not None:
            accepted()
        authenticated: Scope = {**scope, TENANT: authority.tenant, AUTHORITY: authority}
        if scope["type"] == "websocket":
            authenticated, send = without_key(authenticated, send)
        await self.app(authenticated, receive, send)

    def _is_open(self, path: str) -> bool:
        return path in self.open_paths or is_open(path)

    async def _authority(self, scope: Scope) -> Authority:
        """Return the authority of a request.

        Raises ApiError 401, or StorageError if the keys cannot be read.
        """
        ring = await self.keys.ring()
        if ring.is_open:
            return Authority(self.keys, None)
        secret = key_in(scope)
        if secret is None:
            raise unauthorized(MISSING_KEY)
        key = ring.find(secret)
        if key is None:
            raise unauthorized(INVALID_KEY)
        self.keys.note_use(key)
        return Authority(self.keys, key)


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


async def check_authority(connection: HTTPConnection) -> None:
    """Raise ApiError 401 if the connection may not give orders any more."""
    authority: Authority | None = connection.scope.get(AUTHORITY)
    if authority is not None:
        await authority.check()
