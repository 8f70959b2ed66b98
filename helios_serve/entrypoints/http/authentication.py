"""Who sends a request: its API key says so, and without a valid one it gets no further."""

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
"""The key of the ASGI scope under which a middleware puts the sender's tenant."""
OPEN_PATHS = frozenset({"/", "/health", "/liveness", "/version"})
OPEN_FOLDERS = ("/playground/",)
"""What shows nobody's videos: the state of the server, and the playground's page and its files."""
KEY_PROTOCOL = "openai-insecure-api-key."
"""Browsers cannot set headers of a WebSocket, so the key comes among the subprotocols."""
PROTOCOLS = "sec-websocket-protocol"
POLICY_VIOLATION = 1008


class Authentication:
    """Tells the application the sender's tenant, or answers 401 in its place.

    As long as no key was ever made, everybody is the default tenant. Keys are never taken from
    URLs, which end up in logs.
    """

    def __init__(self, app: ASGIApp, keys: KeyCache) -> None:
        self.app = app
        self.keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or is_open(scope["path"]):
            await self.app(scope, receive, send)
            return
        try:
            tenant = await self._tenant(scope)
        except (ApiError, HeliosError) as error:
            await refuse(error, scope, receive, send)
            return
        known: Scope = {**scope, TENANT: tenant}
        if scope["type"] == "websocket":
            known, send = without_key(known, send)
        await self.app(known, receive, send)

    async def _tenant(self, scope: Scope) -> str:
        """Raises ApiError 401, or StorageError where the keys cannot be read."""
        ring = await self.keys.ring()
        if ring.is_open:
            return DEFAULT_TENANT
        secret = key_in(scope)
        if secret is None:
            raise unauthorized("got no API key, expected the header Authorization: Bearer KEY")
        key = ring.find(secret)
        if key is None:
            raise unauthorized("got an API key that is unknown or was revoked")
        self.keys.note_use(key)
        return key.tenant


def is_open(path: str) -> bool:
    return path in OPEN_PATHS or path.startswith(OPEN_FOLDERS)


def unauthorized(message: str) -> ApiError:
    return ApiError(401, message, code="invalid_api_key")


def key_in(scope: Scope) -> str | None:
    """The key that came with a request, in its header or among a WebSocket's subprotocols."""
    kind, _, secret = Headers(scope=scope).get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and secret.strip():
        return secret.strip()
    for protocol in scope.get("subprotocols", ()):
        if protocol.startswith(KEY_PROTOCOL):
            return str(protocol.removeprefix(KEY_PROTOCOL))
    return None


def without_key(scope: Scope, send: Send) -> tuple[Scope, Send]:
    """A WebSocket's scope less the key among its subprotocols, and a `send` that takes another.

    A browser gives up unless one that it offered is taken, and that must not be the key.
    """
    offered = without_keys(scope.get("subprotocols", ()))
    headers = MutableHeaders(raw=list(scope["headers"]))
    del headers[PROTOCOLS]
    if offered:
        headers[PROTOCOLS] = ", ".join(offered)

    async def taking(message: Message) -> None:
        if message["type"] == "websocket.accept" and offered and not message.get("subprotocol"):
            message = {**message, "subprotocol": offered[0]}
        await send(message)

    return {**scope, "subprotocols": offered, "headers": headers.raw}, taking


def without_keys(protocols: Iterable[str]) -> list[str]:
    return [protocol for protocol in protocols if not protocol.startswith(KEY_PROTOCOL)]


async def refuse(error: ApiError | HeliosError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the envelope; a WebSocket is closed before it opens where no answer can be."""
    answer = error_response(error)
    if answer.status_code == 401:
        answer.headers["www-authenticate"] = "Bearer"
    can_answer = "websocket.http.response" in (scope.get("extensions") or {})
    if scope["type"] == "websocket" and not can_answer:
        await send({"type": "websocket.close", "code": POLICY_VIOLATION})
        return
    await answer(scope, receive, send)


def tenant_of(connection: HTTPConnection) -> str:
    """The tenant whose videos the sender may see, and in whose name it asks for more."""
    name: str = connection.scope.get(TENANT, DEFAULT_TENANT)
    return name
