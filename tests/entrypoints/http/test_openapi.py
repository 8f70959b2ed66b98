"""The description agrees with the routes, and is one that tools take."""

import json
from pathlib import Path
from typing import Any

import httpx2 as httpx
import jsonschema
from starlette.routing import Route

from helios_serve.engine.requests.async_engine import AsyncEngine
from helios_serve.entrypoints.http.app import make_app
from helios_serve.entrypoints.http.openapi import OPERATIONS, OpenApi
from helios_serve.store.keys import KeyStore
from helios_serve.store.video_store import VideoStore


def test_every_route_is_described_and_every_description_is_a_route(tmp_path: Path) -> None:
    store, keys = VideoStore(tmp_path), KeyStore(tmp_path)
    app = make_app(AsyncEngine({}), store, tmp_path, keys)
    routes = {
        (method.lower(), route.path.replace(":path", ""))
        for route in app.routes
        if isinstance(route, Route) and route.include_in_schema
        for method in (route.methods or ())
        if method != "HEAD"
    }
    store.close()
    keys.close()
    assert routes == {(operation.method, operation.path) for operation in OPERATIONS}


def test_answers_are_as_described(http: httpx.Client, finished: Any) -> None:
    document = http.get("/openapi.json").json()
    assert document == json.loads(json.dumps(OpenApi().document))
    for path in ("/v1/usage", "/v1/videos", f"/v1/videos/{finished.id}", "/v1/models", "/v1/files"):
        template = path.replace(finished.id, "{video_id}")
        content = document["paths"][template]["get"]["responses"]["200"]["content"]
        schema = content["application/json"]["schema"] | {"components": document["components"]}
        jsonschema.validate(http.get(path).json(), schema)
