"""Paths of requests, with and without the prefix of a proxy."""

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send


class RootPath:
    """Middleware that removes `root_path`, the prefix under which a proxy serves this server.

    The prefix is optional, because some proxies remove it. A slash at the end of a path is ignored:
    a redirect to the path without it would need to know the proxy's address.
    """

    def __init__(self, app: ASGIApp, root_path: str = "") -> None:
        self.app = app
        self.root_path = normalized(root_path)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        root, path = self.root_path, scope["path"]
        if root and path == root and scope["type"] == "http":
            # The page's files are relative to the folder.
            await RedirectResponse(f"{root}/")(scope, receive, send)
            return
        if root and path.startswith(f"{root}/"):
            path = path[len(root) :]
        if len(path) > 1 and path.endswith("/"):
            path = path.rstrip("/") or "/"
        await self.app({**scope, "root_path": root, "path": root + path}, receive, send)


def normalized(root_path: str) -> str:
    """Return a prefix with a slash at its start, and none at its end."""
    stripped = root_path.strip("/")
    return f"/{stripped}" if stripped else ""


def route_path(scope: Scope) -> str:
    """Return the path of a request without the prefix of the proxy."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path[len(root) :] if root and path.startswith(f"{root}/") else path
