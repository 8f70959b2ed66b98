"""Request ids, log lines, probes and rate-limit headers of a real server."""

import json
import re
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from helios_serve.store.keys import KeyStore
from tests.support.api import PATIENCE, error_of, wait_until_ready
from tests.support.server import Server, running_server

LIMITS = "[tenants.small]\nmax_sessions = 2\nframes_per_day = 200\n"
BODY: dict[str, Any] = {"prompt": "a secret prompt", "size": "64x64", "num_frames": 33}
GENERATED = re.compile(r"req_[0-9a-f]{32}")


class Logged:
    """A server with a JSON log, public metrics, and one tenant with limits."""

    def __init__(self, server: Server, log: Path, key: str, early: httpx.Response) -> None:
        self.server = server
        self.early = early
        """The responses of `/health` before the first worker was ready."""
        self.log = log
        headers = {"authorization": f"Bearer {key}"}
        self.http = httpx.Client(base_url=server.url, timeout=60, headers=headers)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def line_of(self, request_id: str) -> dict[str, Any]:
        """Wait for the log line of a request, which is written after its response."""
        deadline = time.monotonic() + PATIENCE
        while request_id not in self.log.read_text():
            assert time.monotonic() < deadline, f"{request_id} is not logged"
            time.sleep(0.01)
        (line,) = [line for line in self.lines() if line["request_id"] == request_id]
        return line


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Logged]:
    folder = tmp_path_factory.mktemp("access")
    with closing(KeyStore(folder / "data")) as store:
        key = store.create("small").secret
    (folder / "tenants.toml").write_text(LIMITS)
    flags = ("--tenants", str(folder / "tenants.toml"), "--log-format", "json", "--public-metrics")
    log = folder / "log"
    with running_server(folder / "data", "nano", "--device", "cpu", *flags, log=log) as server:
        with server.workers_stopped():
            early = httpx.get(f"{server.url}/health")
            assert httpx.get(f"{server.url}/liveness").status_code == 200
        made = Logged(server, log, key, early)
        with made.http:
            wait_until_ready(made.http)
            yield made


def test_a_clients_request_id_is_kept_and_logged(logged: Logged) -> None:
    answer = logged.http.get("/v1/models?secret=1", headers={"x-request-id": "trace/7f-1"})
    assert answer.headers["x-request-id"] == "trace/7f-1"
    line = logged.line_of("trace/7f-1")
    assert re.fullmatch(r"GET /v1/models 200 in \d+ ms for 127\.0\.0\.1", line["message"])
    assert line["level"] == "INFO"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])


@pytest.mark.parametrize("given", ["", "two words", "x" * 129, "caf\u00e9"])
def test_an_invalid_request_id_is_replaced(logged: Logged, given: str) -> None:
    headers = [(b"x-request-id", given.encode("latin-1"))]
    answer = logged.http.get("/v1/models", headers=headers)
    assert GENERATED.fullmatch(answer.headers["x-request-id"])


def test_a_path_cannot_forge_a_line(logged: Logged) -> None:
    answer = logged.http.get("/a%0A%22b", headers={"x-request-id": "forger"})
    assert answer.status_code == 404
    assert logged.line_of("forger")["message"].startswith("GET none 404 ")


def test_probes_and_user_data_are_not_logged(logged: Logged) -> None:
    for path in ("/health", "/ping", "/load", "/metrics", "/liveness"):
        assert httpx.get(logged.server.url + path).status_code == 200
    logged.http.post("/v1/videos/sync", json=BODY)
    assert logged.http.post("/ping").json()["status"] == "ok"
    text = logged.log.read_text()
    assert "/health" not in text
    assert BODY["prompt"] not in text
    assert "POST /v1/videos/sync 200" in text


def test_every_line_is_json_those_of_workers_too(logged: Logged) -> None:
    assert any("weights" in line["message"] for line in logged.lines())


def test_headers_say_what_a_tenant_may_still_request(logged: Logged) -> None:
    with logged.server.workers_stopped():
        first = logged.http.post("/v1/videos", json=BODY)
        second = logged.http.post("/v1/videos", json=BODY)
        third = logged.http.post("/v1/videos", json=BODY)
        load = logged.http.get("/load").json()["server_load"]
    assert (first.status_code, second.status_code, third.status_code) == (200, 200, 429)
    remaining = "x-ratelimit-remaining-requests"
    assert [answer.headers[remaining] for answer in (first, second, third)] == ["1", "0", "0"]
    assert error_of(third)["code"] == "tenant_quota"
    assert load == 2
    for answer in (first, second, third):
        assert answer.headers["x-ratelimit-limit-requests"] == "2"
        assert answer.headers["x-ratelimit-limit-frames"] == "200"
        assert re.fullmatch(r"\d+s", answer.headers["x-ratelimit-reset-frames"])
        assert float(answer.headers["openai-processing-ms"]) >= 0
    frames = "x-ratelimit-remaining-frames"
    assert int(first.headers[frames]) - int(second.headers[frames]) == 33
    assert third.headers[frames] == second.headers[frames]


def test_requests_are_counted_by_route(logged: Logged) -> None:
    def count(handler: str, status: str) -> float:
        text = httpx.get(f"{logged.server.url}/metrics").text
        labels = f'handler="{handler}",method="GET",status="{status}"'
        match = re.search(rf"http_requests_total{{{re.escape(labels)}}} (\S+)", text)
        return 0.0 if match is None else float(match[1])

    before = count("/v1/videos/{video_id}", "404"), count("none", "404")
    for name in ("video_a", "video_b"):
        logged.http.get(f"/v1/videos/{name}")
    logged.http.get("/random/path")
    after = count("/v1/videos/{video_id}", "404"), count("none", "404")
    assert (after[0] - before[0], after[1] - before[1]) == (2, 1)


def test_a_server_is_ready_when_a_worker_is(logged: Logged) -> None:
    assert (logged.early.status_code, logged.early.json()["status"]) == (503, "starting")
    assert logged.http.get("/health").status_code == 200
