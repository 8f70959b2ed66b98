"""Routes of the playground: a page and its files, which contain no user data."""

import hashlib
from importlib import resources
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from helios_serve.service.errors import ApiError

PAGE = "index.html"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' blob:",
        "media-src blob:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
"""Content security policy: no other hosts, nothing inline.

Media is allowed as blobs only, because the page fetches it with the API key.
"""
HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
"""Caches must revalidate, so that files of two versions are never mixed."""


class StaticFile(NamedTuple):
    """A file of the page. `etag` is derived from its content."""

    content: bytes
    media_type: str
    etag: str


class Playground:
    """Serves the files of the package `playground`, which are read once."""

    def __init__(self) -> None:
        self.files = read_files()

    @property
    def routes(self) -> list[Route]:
        return [
            Route("/", self.page, include_in_schema=False),
            Route("/playground/{name}", self.file, include_in_schema=False),
        ]

    async def page(self, request: Request) -> Response:
        return self._answer(request, PAGE)

    async def file(self, request: Request) -> Response:
        return self._answer(request, request.path_params["name"])

    def _answer(self, request: Request, name: str) -> Response:
        file = self.files.get(name)
        if file is None:
            raise ApiError(404, f"{request.url.path} not found", code="not_found")
        headers = HEADERS | {"etag": file.etag}
        known = request.headers.get("if-none-match", "")
        if file.etag in (tag.strip().removeprefix("W/") for tag in known.split(",")):
            return Response(status_code=304, headers=headers)
        return Response(file.content, headers=headers, media_type=file.media_type)


def read_files() -> dict[str, StaticFile]:
    """Return the page and the files that it loads, by name."""
    found = {}
    for item in resources.files(__package__).iterdir():
        media_type = TYPES.get("." + item.name.rpartition(".")[2])
        if media_type is not None:
            content = item.read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            found[item.name] = StaticFile(content, media_type, etag)
    return found
