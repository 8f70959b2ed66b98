"""A server without capacity for another video, in this process."""

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx2 as httpx
import pytest
import uvicorn

from helios_serve.engine.requests.async_engine import AsyncEngine
from helios_serve.entrypoints.cli.serve import listen
from helios_serve.entrypoints.http.app import make_app
from helios_serve.options.scheduling import SchedulingConfig
from helios_serve.store.keys import KeyStore
from helios_serve.store.video_store import VideoStore
from tests.support.api import error_of
from tests.support.engines import core


@pytest.fixture
def http(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[httpx.Client]:
    """A client of a server in which no video may wait for a worker."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    own = core(scheduling=SchedulingConfig(max_queued=0))
    with (
        closing(VideoStore(tmp_path / "data")) as store,
        closing(KeyStore(tmp_path / "data")) as keys,
        closing(listen("127.0.0.1", 0)) as listener,
    ):
        app = make_app(AsyncEngine({"nano": own}, store), store, tmp_path / "data", keys)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            port = listener.getsockname()[1]
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join(30)


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
