"""The description agrees with the routes, and is valid for tools."""

import asyncio
import json
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2 as httpx
import jsonschema
from starlette.requests import Request
from starlette.routing import Route

from helios_serve.engine.requests.async_engine import AsyncEngine
from helios_serve.entrypoints.http.app import make_app
from helios_serve.store.keys import KeyStore
from helios_serve.store.video_store import VideoStore


def test_every_route_is_described_once(tmp_path: Path) -> None:
    """Except the page and the WebSocket, which OpenAPI cannot describe."""
    with closing(VideoStore(tmp_path)) as store, closing(KeyStore(tmp_path)) as keys:
        app = make_app(AsyncEngine({}), store, tmp_path, keys)
    routes = Counter(
        (method.lower(), route.path.replace(":path", ""))
        for route in app.routes
        if isinstance(route, Route) and route.include_in_schema
        for method in (route.methods or ())
        if method != "HEAD"
    )
    (shown,) = (route for route in app.routes if getattr(route, "path", "") == "/openapi.json")
    assert isinstance(shown, Route)
    answer = asyncio.run(shown.endpoint(Request({"type": "http"})))
    paths = json.loads(answer.body)["paths"]
    assert routes == Counter((method, path) for path, item in paths.items() for method in item)


def test_answers_are_as_described(http: httpx.Client, finished: Any) -> None:
    document = http.get("/openapi.json").json()
    for path in ("/v1/usage", "/v1/videos", f"/v1/videos/{finished.id}", "/v1/models", "/v1/files"):
        template = path.replace(finished.id, "{video_id}")
        content = document["paths"][template]["get"]["responses"]["200"]["content"]
        schema = content["application/json"]["schema"] | {"components": document["components"]}
        jsonschema.validate(http.get(path).json(), schema)
