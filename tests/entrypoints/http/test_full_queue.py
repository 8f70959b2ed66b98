"""A server without capacity for another video."""

from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import pytest

from helios_serve.options.scheduling import SchedulingConfig
from tests.support.api import error_of
from tests.support.quick_server import quick_server


@pytest.fixture
def http(tmp_path: Path) -> Iterator[httpx.Client]:
    """A client of a server in which no video may wait for a worker."""
    with (
        quick_server(tmp_path / "data", scheduling=SchedulingConfig(max_queued=0)) as url,
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        yield client


def test_a_full_queue_is_503_with_retry_after_and_nothing_is_kept(http: httpx.Client) -> None:
    body = {"prompt": "waves", "size": "64x64", "num_frames": 33}
    for path in ("/v1/videos", "/v1/videos/sync"):
        answer = http.post(path, json=body)
        assert answer.status_code == 503
        error = error_of(answer)
        assert (error["code"], error["type"]) == ("queue_full", "server_error")
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert "x-should-retry" not in answer.headers
    assert http.get("/v1/videos").json()["data"] == []
    assert http.get("/v1/usage").json()["totals"]["requests"] == 0
