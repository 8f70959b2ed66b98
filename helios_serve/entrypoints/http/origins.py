"""Protection of a server without API keys from web pages that its users visit.

A browser lets any page send requests to 127.0.0.1, and DNS rebinding lets a page read the answers.
"""

import re
import socket
from collections.abc import Collection
from ipaddress import ip_address
from typing import NamedTuple
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from helios_serve.entrypoints.http.authentication import is_open, refuse
from helios_serve.entrypoints.http.paths import route_path
from helios_serve.errors import HeliosError, InvalidRequestError
from helios_serve.service.errors import ApiError
from helios_serve.service.key_cache import KeyCache

HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]*)(:[0-9]{1,5})?")
NAME = re.compile(
    r"(\*\.)?[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*\.?"
)
METHODS = ("GET", "POST", "DELETE", "HEAD")
EXPOSED = (
    "accept-ranges",
    "content-disposition",
    "content-length",
    "content-range",
    "etag",
    "last-modified",
    "openai-poll-after-ms",
    "openai-processing-ms",
    "retry-after",
    "x-helios-cell",
    "x-ratelimit-limit-frames",
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-frames",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-frames",
    "server-timing",
    "x-request-id",
    "x-should-retry",
    "x-video-id",
)
"""Response headers that pages of other origins may read."""
DEFAULT_PORTS = {"http": 80, "ws": 80, "https": 443, "wss": 443}


class AllowedHosts:
    """The names in the header `host` that are served.

    They are IP addresses, localhost, names without a dot and `names`. An attacker's page cannot
    have any of these as its own host, so DNS rebinding does not make it a page of this server.
    Raises ValueError for an invalid name.
    """

    def __init__(self, names: Collection[str] = ()) -> None:
        for name in names:
            if name != "*" and NAME.fullmatch(name.lower()) is None and not is_address(name):
                raise ValueError(f"got {name!r}, expected a host name such as video.example.com")
        self.names = frozenset(name.lower().rstrip(".") for name in names)

    def allows(self, host: str) -> bool:
        """Return whether the value of a header `host` is allowed."""
        match = HOST.fullmatch(host.strip())
        if match is None:
            return False
        name = match[1].strip("[]").lower().rstrip(".")
        parent = name.partition(".")[2]
        if "*" in self.names or not parent or is_address(name):
            return bool(name)
        if name == socket.gethostname().lower() or parent == "localhost":
            return True
        parents = (name.split(".", index)[-1] for index in range(1, name.count(".") + 1))
        return name in self.names or any(f"*.{part}" in self.names for part in parents)


class Origin(NamedTuple):
    """A page's origin."""

    scheme: str
    host: str
    port: int | None

    @classmethod
    def parse(cls, text: str) -> "Origin | None":
        """Return the origin of a URL; None for `null` and anything else that has none."""
        try:
            parts = urlsplit(text.strip())
            scheme, host = parts.scheme.lower(), (parts.hostname or "").rstrip(".")
            port = parts.port or DEFAULT_PORTS.get(scheme)
        except ValueError:
            return None
        return cls(scheme, host, port) if host else None

    def serves(self, host: str) -> bool:
        """Return whether a page of this origin has the value of a header `host` as its own.

        The scheme is not compared, because a proxy may add TLS.
        """
        own = Origin.parse(f"{self.scheme}://{host}")
        return own is not None and (own.host, own.port) == (self.host, self.port)


class AllowedOrigins:
    """The origins of other pages that may call the server: scheme, host and port, or *.

    Raises ValueError for an invalid origin.
    """

    def __init__(self, origins: Collection[str] = ()) -> None:
        self.texts = tuple(origin.rstrip("/") for origin in origins)
        self.are_all = "*" in self.texts
        parsed = {text: Origin.parse(text) for text in self.texts if text != "*"}
        for text, origin in parsed.items():
            if origin is None or urlsplit(text).path or not origin.scheme:
                raise ValueError(f"got {text!r}, expected an origin such as https://example.com")
        self.origins = frozenset(parsed.values())

    def allows(self, origin: Origin | None) -> bool:
        return self.are_all or (origin is not None and origin in self.origins)


class OriginGuard:
    """Middleware that refuses what pages of other origins send, while there are no API keys.

    With keys, a page needs one, and browsers send none by themselves.
    """

    def __init__(
        self, app: ASGIApp, keys: KeyCache, hosts: AllowedHosts, origins: AllowedOrigins
    ) -> None:
        self.app = app
        self.keys = keys
        self.hosts = hosts
        self.origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            try:
                if (await self.keys.ring()).is_open:
                    self.check(Headers(scope=scope), route_path(scope))
            except (ApiError, HeliosError) as error:
                await refuse(error, scope, receive, send)
                return
        await self.app(scope, receive, send)

    def check(self, headers: Headers, path: str) -> None:
        """Raise ApiError 403 for another host, or a page of another origin.

        Only paths without user data may be linked from other pages.
        """
        host = headers.get("host")
        if host is not None and not self.hosts.allows(host):
            raise ApiError(
                403,
                f"got host {host[:100]!r}, expected an IP address, localhost or one of "
                "--allowed-hosts; or create an API key",
                code="host_not_allowed",
            )
        if not is_open(path) and self.is_foreign(headers, host or ""):
            raise ApiError(
                403,
                "got a request from a page of another origin, expected one of "
                "--allowed-origins; or create an API key",
                code="origin_not_allowed",
            )

    def is_foreign(self, headers: Headers, host: str) -> bool:
        """Return whether a page of another origin sends a request.

        Browsers send `origin` with everything but plain GET requests, and `sec-fetch-site` with
        everything. Requests for a page's images and videos may have `referer` only.
        """
        text = headers.get("origin")
        site = headers.get("sec-fetch-site", "none")
        if text is None and site in ("none", "same-origin"):
            return False
        origin = Origin.parse(headers.get("referer", "") if text is None else text)
        if self.origins.allows(origin):
            return False
        if text is None or origin is None:
            return True
        return site not in ("none", "same-origin") or not origin.serves(host)


class CrossOrigin(CORSMiddleware):
    """Middleware that lets pages of allowed origins read responses (CORS)."""

    def __init__(self, app: ASGIApp, origins: AllowedOrigins) -> None:
        super().__init__(
            app,
            allow_origins=origins.texts,
            allow_methods=METHODS,
            allow_headers=["*"],
            expose_headers=EXPOSED,
            allow_private_network=True,
        )


def is_address(name: str) -> bool:
    try:
        ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True


def parse_allowed(
    hosts: Collection[str], origins: Collection[str]
) -> tuple[AllowedHosts, AllowedOrigins]:
    """Return what `--allowed-hosts` and `--allowed-origins` allow. Raises InvalidRequestError."""
    try:
        allowed_hosts = AllowedHosts(hosts)
    except ValueError as error:
        raise InvalidRequestError(str(error), param="allowed-hosts") from error
    try:
        return allowed_hosts, AllowedOrigins(origins)
    except ValueError as error:
        raise InvalidRequestError(str(error), param="allowed-origins") from error
