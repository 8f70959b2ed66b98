"""The HTTP connection to the server that is measured, and what is known about it."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import aiohttp

from helios_serve.benchmarks.load.tenants import LoadTenants
from helios_serve.benchmarks.targets.dialects import VIDEOS
from helios_serve.benchmarks.targets.target import (
    SessionFailedError,
    SessionRefusedError,
    UnreachableError,
)
from helios_serve.errors import HeliosError, InvalidRequestError
from helios_serve.options.benchmarks import TargetOptions, Timing

REFUSED = (429, 503)
RETRY_SECONDS = 0.5
PROBE_SECONDS = 5.0
READ_SIZE = 1 << 20
KEEP_ALIVE_SECONDS = 3.0
"""Seconds for which idle connections are kept: less than servers do (uvicorn 5 s), since a request
that is sent while its connection is closed would count as a failure of the server.
"""


class Capabilities(NamedTuple):
    """What the server has: the ways to time a chunk, prompt switches and cancellation."""

    timings: tuple[Timing, ...]
    version: str | None


class Server:
    """An aiohttp session to one server. `base_url` has no slash at its end."""

    def __init__(
        self, http: aiohttp.ClientSession, options: TargetOptions, tenants: LoadTenants
    ) -> None:
        self.http = http
        self.options = options
        self.base_url = parse_url(options)
        self._tenants = tenants
        self._headers = dict(map(parse_header, options.header))

    def headers(self, tenant: str) -> dict[str, str]:
        """Return the headers of a tenant's requests."""
        key = self._tenants.key(tenant) or self.options.api_key
        return self._headers | ({} if key is None else {"authorization": f"Bearer {key}"})

    @asynccontextmanager
    async def request(
        self, method: str, path: str, tenant: str, **body: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request, and yield its answer if that is a success.

        `body` is `json` or `data`. Raises SessionRefusedError for 429 and 503, SessionFailedError
        for other errors, and UnreachableError.
        """
        try:
            async with self.http.request(
                method, self.base_url + path, headers=self.headers(tenant), **body
            ) as answer:
                if answer.status >= 400:
                    raise error_of(answer.status, await answer.read())
                yield answer
        except (aiohttp.ClientError, OSError) as error:
            raise UnreachableError(f"{type(error).__name__}: {error}") from error

    async def json(self, method: str, path: str, tenant: str, **body: Any) -> dict[str, Any]:
        """Send a request, and return its JSON answer. Raises the errors of `request`."""
        async with self.request(method, path, tenant, **body) as answer:
            found = json.loads(await answer.read())
        if not isinstance(found, dict):
            raise SessionFailedError("invalid_answer", f"{path}: expected a JSON object")
        return found

    async def wait_until_ready(self, tenant: str) -> Capabilities:
        """Wait until the server answers, and find out its capabilities.

        Raises HeliosError if it does not answer within `--ready-check-timeout-sec`.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.options.ready_check_timeout_sec
        while True:
            try:
                async with asyncio.timeout(PROBE_SECONDS):
                    return await self._probe(tenant)
            except (UnreachableError, SessionRefusedError, TimeoutError) as error:
                if loop.time() >= deadline:
                    raise HeliosError(
                        f"cannot reach {self.base_url} within "
                        f"{self.options.ready_check_timeout_sec:g} seconds "
                        f"({error or 'no answer'}): start the server, or set --base-url"
                    ) from error
                await asyncio.sleep(RETRY_SECONDS)

    async def _probe(self, tenant: str) -> Capabilities:
        """Read the routes from the server's OpenAPI document; without one it can be polled."""
        try:
            paths = (await self.json("GET", "/openapi.json", tenant)).get("paths", {})
        except (SessionFailedError, ValueError) as error:
            if isinstance(error, UnreachableError):
                raise
            paths = {}
        ends = {path.rpartition("/")[2] for path in paths if path.startswith(f"{VIDEOS}/{{")}
        found: list[Timing] = []
        if "stream" in ends:
            found.append("media")
        if "events" in ends:
            found.append("events")
        return Capabilities((*found, "poll"), await self._version(tenant))

    async def _version(self, tenant: str) -> str | None:
        try:
            version = (await self.json("GET", "/version", tenant)).get("version")
        except (SessionFailedError, SessionRefusedError, ValueError):
            return None
        return None if version is None else str(version)


@asynccontextmanager
async def connected(options: TargetOptions, tenants: LoadTenants) -> AsyncIterator[Server]:
    """Yield a server with an unlimited connection pool."""
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=30)
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, read_bufsize=READ_SIZE
    ) as http:
        yield Server(http, options, tenants)


def choose_timing(options: TargetOptions, found: Capabilities) -> Timing:
    """Return how chunks are timed. Raises InvalidRequestError if the server cannot do it."""
    if options.endpoint == "/v1/realtime/video":
        return "media"
    if options.timing is None:
        return found.timings[0]
    if options.timing not in found.timings:
        raise InvalidRequestError(
            f"got --timing {options.timing}, expected one that the server has: "
            f"{', '.join(found.timings)}",
            param="timing",
        )
    return options.timing


def error_of(status: int, body: bytes) -> Exception:
    """Return the exception for an error answer: its code is the API's, or else the status."""
    code, message = str(status), body[:200].decode(errors="replace")
    try:
        error = json.loads(body)
        error = error.get("error", error)
        if isinstance(error, dict):
            code = str(error.get("code") or status)
            message = str(error.get("message") or error.get("detail") or message)
    except (ValueError, AttributeError):
        pass
    kind = SessionRefusedError if status in REFUSED else SessionFailedError
    return kind(code, f"HTTP {status}: {message}")


def parse_url(options: TargetOptions) -> str:
    """Return the server's URL without a slash at its end. Raises InvalidRequestError."""
    if options.base_url is None:
        host = f"[{options.host}]" if ":" in options.host else options.host
        return f"http://{host}:{options.port}"
    try:
        parts = urlsplit(options.base_url)
        is_valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of the port
        is_valid = False
    if not is_valid:
        raise InvalidRequestError(
            f"got URL {options.base_url!r}, expected one such as http://127.0.0.1:8000",
            param="base_url",
        )
    return options.base_url.rstrip("/")


def parse_header(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not (separator and name):
        raise InvalidRequestError(f"got --header {text!r}, expected NAME=VALUE", param="header")
    return name, value
