"""Web pages of other origins, against a server without API keys."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from helios_serve.entrypoints.http.origins import AllowedHosts, AllowedOrigins, Origin
from helios_serve.options.edge import EdgeOptions
from tests.support.edge_server import Edge, running_edge, wait_for

APP = "https://app.example"
OPTIONS = EdgeOptions(allowed_hosts=("video.example.com", "*.lan"), allowed_origins=(APP,))


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    with running_edge(tmp_path_factory.mktemp("edge") / "data") as running:
        yield running


@pytest.fixture(scope="module")
def with_origins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    with running_edge(tmp_path_factory.mktemp("edge") / "data", OPTIONS) as running:
        yield running


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1:8000",
        "[::1]:8000",
        "[fe80::1]",
        "10.0.0.7",
        "localhost",
        "LOCALHOST:80",
        "localhost.",
        "app.localhost:3000",
        "helios",
        "video.example.com:443",
        "Video.Example.Com.",
        "nas.lan",
        "a.b.lan",
    ],
)
def test_own_names_are_served(host: str) -> None:
    assert AllowedHosts(OPTIONS.allowed_hosts).allows(host)


@pytest.mark.parametrize(
    "host",
    [
        "",
        ":80",
        "evil.example",
        "evil.example:8000",
        "127.0.0.1.evil.example",
        "video.example.com.evil.example",
        "evilvideo.example.com",
        "www.video.example.com",
        "localhost.evil.example",
        "lan.example",
        "evil.example@127.0.0.1",
        "127.0.0.1:80:80",
        "[::1",
        "a.b, 127.0.0.1",
        "rebind.local",
    ],
)
def test_names_that_may_be_rebound_are_not(edge: Edge, host: str) -> None:
    assert not AllowedHosts(OPTIONS.allowed_hosts).allows(host)
    for path in ("/v1/videos", "/health", "/metrics", "/", "/openapi.json"):
        answer = httpx.get(f"{edge.url}{path}", headers={"host": host}, verify=False)
        assert answer.status_code in (400, 403), path
        assert answer.headers.get("access-control-allow-origin") is None
    handshake = (
        f"GET /v1/realtime/video HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\n"
        "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    assert edge.exchange(handshake.encode()).startswith(b"HTTP/1.1 40")


@pytest.mark.parametrize("name", ["", "*.", "a b", "http:/a", "a.example/", "*x.example"])
def test_a_name_that_is_not_valid_is_named(name: str) -> None:
    with pytest.raises(ValueError, match="expected a host name"):
        AllowedHosts((name,))
    with pytest.raises(ValueError, match="expected an origin"):
        AllowedOrigins((name,))


def test_origins_are_compared_as_browsers_do() -> None:
    assert Origin.parse("https://App.Example") == Origin.parse("https://app.example:443")
    assert Origin.parse("http://a.example") != Origin.parse("https://a.example")
    for nothing in ("null", "", "file:///a", "http://", "http://[", "http://a:99999999"):
        assert Origin.parse(nothing) is None
    assert AllowedOrigins(("*",)).allows(None)
    assert not AllowedOrigins(("https://a.example",)).allows(None)


FOREIGN: list[dict[str, str]] = [
    {"origin": "https://evil.example", "sec-fetch-site": "cross-site"},
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"origin": "file://"},
    {"origin": "http://127.0.0.1:1", "sec-fetch-site": "same-site"},
    {"origin": "http://localhost:3000"},
    {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"},
    {"sec-fetch-site": "same-site", "referer": "http://127.0.0.1:1/"},
    {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"},
    {"sec-fetch-site": "none", "origin": "https://evil.example"},
]
REQUESTS = [
    ("GET", "/v1/videos"),
    ("POST", "/v1/videos"),
    ("POST", "/v1/videos/x/cancel"),
    ("DELETE", "/v1/videos/x"),
    ("GET", "/v1/videos/x/content"),
    ("GET", "/v1/videos/x/events"),
    ("GET", "/v1/videos/x/hls/index.m3u8"),
    ("POST", "/v1/files"),
    ("POST", "/v1/batches"),
    ("GET", "/v1/usage"),
    ("GET", "/metrics"),
    ("OPTIONS", "/v1/videos"),
    ("HEAD", "/v1/videos/x/content"),
    ("GET", "/nothing"),
]


@pytest.mark.parametrize("headers", FOREIGN)
def test_pages_of_other_origins_are_refused_everywhere(edge: Edge, headers: dict[str, str]) -> None:
    body = b'{"prompt": "x"}'
    with httpx.Client(base_url=edge.url, verify=False) as client:
        for method, path in REQUESTS:
            answer = client.request(method, path, headers=headers, content=body)
            assert answer.status_code == 403, (method, path)
            if method != "HEAD":
                assert answer.json()["error"]["code"] == "origin_not_allowed"
            assert "access-control-allow-origin" not in answer.headers
    address = f"{edge.url.replace('http', 'ws', 1)}/v1/realtime/video"
    with pytest.raises(InvalidStatus) as refused, connect(address, additional_headers=headers):
        pass
    assert refused.value.response.status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": "{url}"},
        {"origin": "{url}", "sec-fetch-site": "same-origin"},
        {"sec-fetch-site": "same-origin"},
        {"sec-fetch-site": "none", "sec-fetch-mode": "navigate"},
        {"user-agent": "curl/8", "host": "helios:8000"},
        {"host": "video:443", "origin": "https://video"},
    ],
)
def test_programs_and_the_own_page_are_served(edge: Edge, headers: dict[str, str]) -> None:
    sent = {name: value.format(url=edge.url) for name, value in headers.items()}
    assert httpx.get(f"{edge.url}/v1/videos", headers=sent, verify=False).status_code == 200
    assert (
        httpx.post(f"{edge.url}/v1/batches", headers=sent, json={}, verify=False).status_code == 400
    )


def test_other_pages_may_link_to_the_page(edge: Edge) -> None:
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    for path in ("/", "/playground/app.js", "/health"):
        assert httpx.get(f"{edge.url}{path}", headers=link, verify=False).status_code in (200, 503)


def test_a_websocket_of_the_own_page_is_served(edge: Edge, with_origins: Edge) -> None:
    for server, origin in ((edge, edge.url), (edge, None), (with_origins, APP)):
        address = f"{server.url.replace('http', 'ws', 1)}/v1/realtime/video"
        with connect(address, origin=origin) as client:  # type: ignore[arg-type]
            client.send('{"type": "session.ping"}')
            assert json.loads(client.recv())["type"] == "session.pong"


def test_pages_of_allowed_origins_read_everything(with_origins: Edge) -> None:
    page = {"origin": APP, "sec-fetch-site": "cross-site"}
    with httpx.Client(base_url=with_origins.url, verify=False) as client:
        for method, headers in (
            ("POST", "authorization,content-type,idempotency-key"),
            ("DELETE", "authorization"),
            ("GET", "range,last-event-id"),
        ):
            asked = {
                "access-control-request-method": method,
                "access-control-request-headers": headers,
                "access-control-request-private-network": "true",
            }
            preflight = client.options("/v1/videos/x/content", headers=page | asked)
            assert preflight.status_code == 200, preflight.text
            assert preflight.headers["access-control-allow-origin"] == APP
            assert method in preflight.headers["access-control-allow-methods"]
            assert preflight.headers["access-control-allow-headers"] == headers
            assert preflight.headers["access-control-allow-private-network"] == "true"
        for path, status in (("/v1/models", 200), ("/v1/videos/x", 404), ("/v1/batches/x", 404)):
            answer = client.get(path, headers=page)
            assert answer.status_code == status
            assert answer.headers["access-control-allow-origin"] == APP
            exposed = answer.headers["access-control-expose-headers"]
            assert {"content-range", "x-request-id", "retry-after"} <= set(exposed.split(", "))
            assert "x-ratelimit-remaining-requests" in exposed
            assert "origin" in answer.headers["vary"].lower()
        other = page | {"origin": "https://evil.example"}
        assert client.get("/v1/models", headers=other).status_code == 403
        refused = client.options("/v1/videos", headers=other | asked)
        assert refused.status_code == 400
        assert "access-control-allow-origin" not in refused.headers
        # <video src> and <img> of the page: no Origin, but a Referer
        picture = {"sec-fetch-site": "cross-site", "referer": f"{APP}/a"}
        assert client.get("/v1/videos", headers=picture).status_code == 200


def test_with_keys_any_page_that_has_one_is_served(tmp_path: Path) -> None:
    page = {
        "origin": "https://evil.example",
        "host": "evil.example",
        "sec-fetch-site": "cross-site",
    }
    with running_edge(tmp_path / "data") as edge:
        secret = edge.keys.create("acme").secret
        key = {"authorization": f"Bearer {secret}"}
        with httpx.Client(base_url=edge.url, verify=False) as client:
            wait_for(lambda: client.get("/v1/videos", headers=page).status_code == 401)
            assert client.get("/v1/videos", headers=page | key).status_code == 200
            assert client.get("/v1/videos", headers=page).status_code == 401
