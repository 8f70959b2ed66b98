"""Parsing of URLs, and the list of hosts to which requests may be sent."""

import re
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import urlsplit

MAX_URL = 4096
"""Maximum length of a URL, in characters."""
PRINTABLE = re.compile(r"[!-~]+")
HOST = re.compile(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?|[0-9a-f:.]*:[0-9a-f:.]*")
PORTS = {"http": 80, "https": 443}


class Url(NamedTuple):
    """The parts of a URL that a request needs. `target` is the path with the query."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def host_header(self) -> str:
        """The value of the Host header, with the port unless it is the scheme's default."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"


def parse_url(text: str, schemes: Iterable[str]) -> Url:
    """Parse an absolute URL of one of `schemes`, strictly.

    Raises ValueError. The message contains the URL's scheme and host at most, because the rest may
    hold secrets.
    """
    allowed = " or ".join(schemes)
    if len(text) > MAX_URL or not PRINTABLE.fullmatch(text) or "\\" in text:
        raise ValueError(
            f"invalid URL: expected 1 to {MAX_URL} printable ASCII characters, without spaces and "
            "backslashes"
        )
    try:
        parts = urlsplit(text)
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError as error:
        raise ValueError("invalid URL") from error
    if parts.scheme not in schemes:
        raise ValueError(f"got URL scheme {parts.scheme[:20]!r}, expected {allowed}")
    if parts.username is not None or parts.password is not None:
        raise ValueError("got a URL with a user name or password, expected none")
    if not HOST.fullmatch(host):
        raise ValueError(f"got URL host {host[:100]!r}, expected a name such as example.com")
    target = parts.path or "/"
    if parts.query:
        target = f"{target}?{parts.query}"
    return Url(parts.scheme, host, PORTS[parts.scheme] if port is None else port, target)


class AllowedDomains:
    """A list of allowed hosts.

    `*.DOMAIN` allows all subdomains of a domain, but not the domain itself. `flag` is the
    command-line flag that error messages name. Raises ValueError for an invalid pattern.
    """

    def __init__(self, patterns: Iterable[str], flag: str) -> None:
        self.flag = flag
        self.patterns = tuple(pattern.lower().rstrip(".") for pattern in patterns)
        for pattern in self.patterns:
            if not HOST.fullmatch(pattern.removeprefix("*.")):
                raise ValueError(f"got {flag} {pattern!r}, expected HOST or *.DOMAIN")

    def check(self, host: str) -> None:
        """Raise ValueError unless the host is allowed."""
        if not any(self._fits(host, pattern) for pattern in self.patterns):
            known = f"one of {self.flag}" if self.patterns else f"no URL: {self.flag} is not set"
            raise ValueError(f"got URL host {host[:100]!r}, expected {known}")

    def _fits(self, host: str, pattern: str) -> bool:
        if pattern.startswith("*."):
            return host.endswith(pattern[1:])
        return host == pattern
