"""URLs that name a host which was allowed."""

import re
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import urlsplit

MAX_URL = 4096
PRINTABLE = re.compile(r"[!-~]+")
HOST = re.compile(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?|[0-9a-f:.]*:[0-9a-f:.]*")
PORTS = {"http": 80, "https": 443}


class Url(NamedTuple):
    """Where to connect to, and what to ask for there."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def host_header(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"


def parse_url(text: str, schemes: Iterable[str]) -> Url:
    """Strictly; raises ValueError, with a message that repeats no more than scheme and host."""
    allowed = " or ".join(schemes)
    if len(text) > MAX_URL or not PRINTABLE.fullmatch(text) or "\\" in text:
        raise ValueError(f"got a URL with other characters, or of more than {MAX_URL}")
    try:
        parts = urlsplit(text)
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError as error:
        raise ValueError("got a URL that is none") from error
    if parts.scheme not in schemes:
        raise ValueError(f"got a URL of scheme {parts.scheme[:20]!r}, expected {allowed}")
    if parts.username is not None or parts.password is not None:
        raise ValueError("got a URL with a user's name, expected one without")
    if not HOST.fullmatch(host):
        raise ValueError(f"got a URL of host {host[:100]!r}, expected a name such as example.com")
    target = parts.path or "/"
    if parts.query:
        target = f"{target}?{parts.query}"
    return Url(parts.scheme, host, PORTS[parts.scheme] if port is None else port, target)


class AllowedDomains:
    """Hosts by name, and with `*.` before it all those below a name."""

    def __init__(self, patterns: Iterable[str], flag: str) -> None:
        """Raises ValueError; `flag` is what tells them apart from others."""
        self.flag = flag
        self.patterns = tuple(pattern.lower().rstrip(".") for pattern in patterns)
        for pattern in self.patterns:
            if not HOST.fullmatch(pattern.removeprefix("*.")):
                raise ValueError(f"got {flag} {pattern!r}, expected HOST or *.DOMAIN")

    def check(self, host: str) -> None:
        """Raises ValueError for a host that is not among them."""
        if not any(self._fits(host, pattern) for pattern in self.patterns):
            known = f"one of {self.flag}" if self.patterns else f"no URL: {self.flag} is not set"
            raise ValueError(f"got a URL of host {host[:100]!r}, expected {known}")

    def _fits(self, host: str, pattern: str) -> bool:
        if pattern.startswith("*."):
            return host.endswith(pattern[1:])
        return host == pattern
