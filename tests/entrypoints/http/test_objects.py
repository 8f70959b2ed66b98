"""Videos in a real S3 server, as clients read them: by redirection, and through the server."""

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx2 as httpx
import pytest

from helios_serve.engine.requests.async_engine import AsyncEngine
from helios_serve.entrypoints.http.app import make_app
from helios_serve.entrypoints.http.connections import HttpConfig
from helios_serve.options.edge import EdgeOptions
from helios_serve.options.objects import ObjectOptions, ObjectServing
from helios_serve.store.keys import KeyStore
from helios_serve.store.objects.video_objects import open_objects
from helios_serve.store.video_store import VideoStore
from tests.support.api import error_of, frames_of, openai, played
from tests.support.edge_server import serving, wait_for
from tests.support.objects import (
    CREDENTIALS,
    Bucket,
    Gate,
    begin_video,
    files_of,
    make_video,
    new_bucket,
    segment,
)

PATIENCE = 60.0


class Api(NamedTuple):
    """A server without a model, its store, its bucket, and clients of two tenants."""

    url: str
    store: VideoStore
    bucket: Bucket
    gate: Gate
    keys: dict[str, str]
    http: httpx.Client
    other: httpx.Client

    def wait(self) -> None:
        """Wait until everything is uploaded and deleted."""
        wait_for(lambda: sum(self.backlog()) == 0, PATIENCE)

    def last_error(self) -> str | None:
        found: str | None = self.http.get("/health").json()["object_store"]["last_error"]
        return found

    def backlog(self) -> tuple[int, int]:
        state = self.http.get("/health").json()["object_store"]
        return state["uploads"], state["deletions"]


@pytest.fixture(autouse=True, scope="module")
def credentials() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        yield


@contextmanager
def running_api(
    folder: Path, s3: str, serving_by: ObjectServing, *, drop_local: bool = False
) -> Iterator[Api]:
    gate, bucket = Gate(s3), new_bucket(s3)
    with ExitStack() as opened:
        store = opened.enter_context(closing(VideoStore(folder)))
        keys = opened.enter_context(closing(KeyStore(folder)))
        secrets = {name: keys.create(name).secret for name in ("acme", "other")}
        options = ObjectOptions(
            object_store=bucket.url,
            object_store_endpoint=bucket.through(gate).endpoint,
            object_store_serving=serving_by,
            object_store_drop_local=drop_local,
        )
        objects = open_objects(store, options)
        app = make_app(AsyncEngine({}, store), store, folder, keys, objects=objects)
        port = opened.enter_context(
            serving(app, HttpConfig(app, EdgeOptions(), timeout_graceful_shutdown=1))
        )
        url = f"http://127.0.0.1:{port}"
        clients = [
            opened.enter_context(
                httpx.Client(
                    base_url=url, headers={"authorization": f"Bearer {secret}"}, timeout=60
                )
            )
            for secret in secrets.values()
        ]
        yield Api(url, store, bucket, gate, secrets, *clients)
        gate.close()


@pytest.fixture(scope="module")
def redirecting(tmp_path_factory: pytest.TempPathFactory, s3: str) -> Iterator[Api]:
    with running_api(tmp_path_factory.mktemp("redirect") / "data", s3, "redirect") as api:
        make_video(api.store, "a", tenant="acme")
        api.wait()
        yield api


@pytest.fixture(scope="module")
def proxying(tmp_path_factory: pytest.TempPathFactory, s3: str) -> Iterator[Api]:
    """Nothing is kept locally."""
    folder = tmp_path_factory.mktemp("proxy") / "data"
    with running_api(folder, s3, "proxy", drop_local=True) as api:
        make_video(api.store, "a", tenant="acme")
        api.wait()
        assert not api.store.files.segments.folder("a").exists()
        yield api


@pytest.fixture(params=["redirecting", "proxying"])
def api(request: pytest.FixtureRequest) -> Api:
    found: Api = request.getfixturevalue(request.param)
    return found


CONTENT = "/v1/videos/a/content"


def test_the_finished_video_is_that_of_the_object_store(api: Api) -> None:
    answer = api.http.get(CONTENT, follow_redirects=True)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "video/mp4")
    assert answer.content == api.bucket.get("a/video.mp4").content
    assert len(frames_of(answer.content)) == 66
    with openai.OpenAI(base_url=f"{api.url}/v1", api_key=api.keys["acme"]) as client:
        assert client.videos.download_content("a").read() == answer.content


def test_ranges_and_heads_work_on_both_ways(api: Api) -> None:
    whole = api.bucket.get("a/video.mp4").content
    for asked, span in (("2-9", range(2, 10)), ("-7", range(len(whole) - 7, len(whole)))):
        headers = {"range": f"bytes={asked}"}
        answer = api.http.get(CONTENT, headers=headers, follow_redirects=True)
        assert (answer.status_code, answer.content) == (206, whole[span.start : span.stop])
        where = f"bytes {span.start}-{span.stop - 1}/{len(whole)}"
        assert answer.headers["content-range"] == where
        assert answer.headers["content-type"] == "video/mp4"
    head = api.http.head(CONTENT, follow_redirects=True)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(whole))
    assert head.headers["content-type"] == "video/mp4"
    beyond = {"range": f"bytes={len(whole)}-"}
    assert api.http.get(CONTENT, headers=beyond, follow_redirects=True).status_code == 416


def test_a_proxied_video_is_sent_whole_for_another_version(proxying: Api) -> None:
    tag = proxying.http.head(CONTENT).headers["etag"]
    headers = {"range": "bytes=0-1", "if-range": tag}
    assert proxying.http.get(CONTENT, headers=headers).status_code == 206
    headers["if-range"] = '"other"'
    assert proxying.http.get(CONTENT, headers=headers).status_code == 200
    several = proxying.http.get(CONTENT, headers={"range": "bytes=0-1,4-5"})
    assert (several.status_code, len(several.content)) == (200, len(several.content))
    assert several.content == proxying.bucket.get("a/video.mp4").content


def test_hls_works_on_both_ways(api: Api) -> None:
    folder = "/v1/videos/a/hls"
    assert api.http.get(f"{folder}/index.m3u8").text.count(".m4s") == 2
    for name, data, kind in (
        ("init.mp4", segment(0).header, "video/mp4"),
        ("0.m4s", segment(0).fragment, "video/iso.segment"),
        ("1.m4s", segment(1).fragment, "video/iso.segment"),
    ):
        answer = api.http.get(f"{folder}/{name}", follow_redirects=True)
        assert (answer.content, answer.headers["content-type"]) == (data, kind)
        head = api.http.head(f"{folder}/{name}", follow_redirects=True)
        assert (head.status_code, head.headers["content-type"]) == (200, kind)
    assert api.http.get(f"{folder}/2.m4s").status_code == 404
    stream = api.http.get("/v1/videos/a/stream").content
    assert stream == segment(0).header + segment(0).fragment + segment(1).fragment


def test_images_are_made_on_both_ways(api: Api) -> None:
    answer = api.http.get(f"{CONTENT}?variant=thumbnail")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/webp")


def test_a_redirection_is_short_lived_and_for_who_may_read(redirecting: Api) -> None:
    for path in (CONTENT, "/v1/videos/a/hls/init.mp4", "/v1/videos/a/hls/0.m4s"):
        answer = redirecting.http.get(path)
        assert (answer.status_code, answer.headers["cache-control"]) == (307, "no-store")
        target = answer.headers["location"]
        assert target.startswith(f"http://127.0.0.1:{redirecting.gate.port}/")
        assert "X-Amz-Expires=900" in urlsplit(target).query
        assert CREDENTIALS["AWS_SECRET_ACCESS_KEY"] + "&" not in target
        hidden = redirecting.other.get(path)
        assert hidden.status_code == 404
        assert "location" not in hidden.headers
        assert httpx.get(f"{redirecting.url}{path}").status_code == 401


def test_a_proxied_video_is_hidden_from_others(proxying: Api) -> None:
    for path in (CONTENT, "/v1/videos/a/hls/0.m4s", "/v1/videos/a/stream"):
        assert proxying.other.get(path).status_code == 404


def test_what_is_not_uploaded_yet_comes_from_here(redirecting: Api) -> None:
    redirecting.gate.close()
    make_video(redirecting.store, "b", tenant="acme")
    try:
        answer = redirecting.http.get("/v1/videos/b/content")
        assert (answer.status_code, len(frames_of(answer.content))) == (200, 66)
        part = redirecting.http.get("/v1/videos/b/hls/0.m4s")
        assert (part.status_code, part.content) == (200, segment(0).fragment)
        wait_for(lambda: redirecting.last_error() is not None, PATIENCE)
        assert redirecting.backlog() == (1, 0)
    finally:
        redirecting.gate.open()
    redirecting.wait()
    assert redirecting.http.get("/v1/videos/b/content").status_code == 307


def test_a_live_video_comes_from_there_chunk_by_chunk(redirecting: Api) -> None:
    begin_video(redirecting.store, "live", tenant="acme")
    redirecting.wait()
    assert redirecting.http.get("/v1/videos/live/hls/1.m4s").status_code == 307
    not_ready = redirecting.http.get("/v1/videos/live/content")
    assert error_of(not_ready)["code"] == "not_ready"


def test_an_outage_is_an_error_to_try_again(proxying: Api) -> None:
    proxying.gate.close()
    try:
        for path in (CONTENT, "/v1/videos/a/hls/0.m4s"):
            answer = proxying.http.get(path, timeout=60)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
            error = error_of(answer)
            assert error["code"] == "object_store"
            assert "no connection" in error["message"]
            assert "s3://" not in error["message"]
    finally:
        proxying.gate.open()
    assert proxying.http.get(CONTENT).status_code == 200


def test_deleting_a_video_deletes_its_objects(api: Api) -> None:
    make_video(api.store, "gone", tenant="acme")
    api.wait()
    assert set(files_of("gone", 2)) <= set(api.bucket.names())
    assert api.http.delete("/v1/videos/gone").status_code == 200
    api.wait()
    assert not [name for name in api.bucket.names() if name.startswith("gone/")]
    assert api.http.get("/v1/videos/gone/content").status_code == 404


def test_players_follow_redirections(tmp_path: Path, s3: str) -> None:
    """FFmpeg plays the playlist of a server without keys."""
    folder = tmp_path / "data"
    with running_api(folder, s3, "redirect") as api:
        make_video(api.store, "a", tenant="acme")
        api.wait()
        header = f"Authorization: Bearer {api.keys['acme']}\r\n"
        assert len(played(f"{api.url}/v1/videos/a/hls/index.m3u8", headers=header)) == 66
