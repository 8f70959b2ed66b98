"""Paths behind a proxy that serves the server below a prefix."""

from collections.abc import Iterator

import httpx2 as httpx
import pytest
from websockets.sync.client import connect

from helios_serve.options.edge import EdgeOptions
from tests.support.edge_server import Edge, running_edge, wait_for


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    options = EdgeOptions(root_path="video/")
    with running_edge(tmp_path_factory.mktemp("edge") / "data", options) as running:
        yield running


@pytest.fixture(scope="module")
def http(edge: Edge) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {edge.keys.create('acme').secret}"}
    with httpx.Client(base_url=edge.url, headers=headers, verify=False) as client:
        wait_for(lambda: httpx.get(f"{edge.url}/v1/videos", verify=False).status_code == 401)
        yield client


@pytest.mark.parametrize("prefix", ["", "/video"])
@pytest.mark.parametrize("end", ["", "/", "//"])
def test_a_proxy_may_remove_the_prefix_or_not(http: httpx.Client, prefix: str, end: str) -> None:
    for path in ("/v1/models", "/v1/videos", "/health", "/metrics", "/openapi.json"):
        answer = http.get(f"{prefix}{path}{end}")
        assert answer.status_code == 200, answer.text
        assert "location" not in answer.headers
    answer = http.post(f"{prefix}/v1/batches{end}", json={})
    assert answer.status_code == 400  # the body was read, rather than redirected
    assert http.get(f"{prefix}/v1/videos/none{end}").json()["error"]["code"] == "not_found"
    assert http.get(f"{prefix}/videos{end}").status_code == 404


def test_no_redirect_names_the_server(http: httpx.Client) -> None:
    answer = http.get("/video", headers={"host": "internal:8000"})
    assert (answer.status_code, answer.headers["location"]) == (307, "/video/")
    assert http.get("/videos").status_code == 404


@pytest.mark.parametrize("path", ["/", "/video/", "/video//"])
def test_the_page_loads_its_files_below_the_prefix(http: httpx.Client, path: str) -> None:
    page = http.get(path)
    assert page.status_code == 200
    assert 'src="playground/app.js"' in page.text
    assert '"/' not in page.text
    assert http.get("/video/playground/app.js").status_code == 200


def test_keys_are_needed_below_the_prefix_as_well(edge: Edge, http: httpx.Client) -> None:
    for prefix in ("", "/video"):
        for path, status in (("/v1/videos", 401), ("/metrics", 401), ("/health", 200), ("/", 200)):
            answer = httpx.get(f"{edge.url}{prefix}{path}", verify=False)
            assert answer.status_code == status, path
        address = f"{edge.url.replace('http', 'ws', 1)}{prefix}/v1/realtime/video"
        with connect(address, additional_headers=dict(http.headers)) as client:
            client.send('{"type": "session.ping"}')
            assert "session.pong" in str(client.recv())


def test_the_description_names_the_prefix(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    assert document["servers"] == [{"url": "/video"}]
    assert "/v1/videos" in document["paths"]
