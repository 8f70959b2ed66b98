"""Webhooks for a receiver with OpenAI's client, through failures and restarts."""

import argparse
import asyncio
import base64
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import trustme

from helios_serve.entrypoints.cli import flags as cli_flags
from helios_serve.errors import InvalidRequestError
from helios_serve.service.outbound.outbound import Outbound
from helios_serve.service.outbound.urls import AllowedDomains
from helios_serve.service.webhooks import webhooks
from helios_serve.service.webhooks.endpoint import Endpoint, parse_secrets
from helios_serve.service.webhooks.webhooks import Webhooks
from helios_serve.store.outbox import Outbox
from helios_serve.store.video_store import VideoStore
from helios_serve.video_request import VideoRequest
from tests.support.https_server import Got, HttpsServer, Reply, https_server
from tests.support.server import running_server

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import openai

SECRET = f"whsec_{base64.b64encode(bytes(range(32))).decode()}"
OTHER = f"whsec_{base64.b64encode(bytes(24)).decode()}"
FLAG = "--allowed-webhook-domains"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "POLL_SECONDS", 0.02)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[VideoStore]:
    with closing(VideoStore(tmp_path)) as store:
        Outbox(store.database)
        yield store


def end(store: VideoStore, *names: str, status: Any = "completed") -> None:
    for name in names:
        store.accept(VideoRequest(request_id=name, prompt="a dog"), num_chunks=1)
        store.finish(name, status)


def pending(store: VideoStore) -> int:
    return len(Outbox(store.database).due(1e12, 1000))


def deliver(
    store: VideoStore,
    server: HttpsServer,
    until: Callable[[], bool],
    *,
    secrets: str = SECRET,
    outbound: Outbound | None = None,
    delays: tuple[float, ...] = (0.05, 0.05, 0.05),
) -> None:
    """Deliver events until `until` is true."""

    async def main() -> None:
        way = outbound or server.outbound(FLAG)
        endpoint = Endpoint(way.parse(f"{server.url}/hook"), parse_secrets(secrets))
        async with Webhooks(Outbox(store.database), endpoint, way, delays=delays):
            async with asyncio.timeout(30):
                await until_true(until)

    asyncio.run(main())


async def until_true(condition: Callable[[], bool]) -> None:
    while not await asyncio.to_thread(condition):
        await asyncio.sleep(0.01)


def unwrap(got: Got, secret: str = SECRET) -> dict[str, Any]:
    client = openai.OpenAI(api_key="none", webhook_secret=secret)
    event: dict[str, Any] = client.webhooks.unwrap(got.body, got.headers).to_dict()
    return event


def test_the_openai_client_takes_our_events(store: VideoStore) -> None:
    with https_server() as server:
        began = int(time.time())
        end(store, "video_1")
        end(store, "video_2", status="failed")
        end(store, "video_3", status="cancelled")
        deliver(store, server, lambda: pending(store) == 0)
        events = {event["data"]["id"]: event for event in map(unwrap, server.got)}
    kinds = {name: event["type"] for name, event in events.items()}
    assert kinds == {
        "video_1": "video.completed",
        "video_2": "video.failed",
        "video_3": "video.failed",
    }
    for got in server.got:
        assert got.path == "/hook"
        body = json.loads(got.body)
        assert body.keys() == {"id", "object", "created_at", "type", "data"}
        assert (body["id"], body["object"]) == (got.headers["webhook-id"], "event")
        assert body["data"].keys() == {"id"}
        assert began <= body["created_at"] <= int(got.headers["webhook-timestamp"])


def test_others_cannot_sign_them(store: VideoStore) -> None:
    with https_server() as server:
        end(store, "video_1")
        deliver(store, server, lambda: pending(store) == 0)
    (got,) = server.got
    with pytest.raises(openai.InvalidWebhookSignatureError):
        unwrap(got, OTHER)
    with pytest.raises(openai.InvalidWebhookSignatureError):
        unwrap(got._replace(body=got.body.replace(b"video_1", b"video_2")))


def test_a_secret_may_be_replaced_by_another(store: VideoStore) -> None:
    with https_server() as server:
        end(store, "video_1")
        deliver(store, server, lambda: pending(store) == 0, secrets=f"{OTHER}\n{SECRET}\n")
    assert unwrap(server.got[0], OTHER) == unwrap(server.got[0], SECRET)


def test_an_event_is_sent_again_until_it_is_received(store: VideoStore) -> None:
    replies = iter([Reply(500), Reply(302, b"", {"location": "/other"}), Reply(429), Reply(204)])
    with https_server(lambda _: next(replies)) as server:
        end(store, "video_1")
        deliver(store, server, lambda: pending(store) == 0)
    assert [got.path for got in server.got] == 4 * ["/hook"]
    assert len({got.headers["webhook-id"] for got in server.got}) == 1
    assert len({got.body for got in server.got}) == 1
    assert len([unwrap(got) for got in server.got]) == 4


@pytest.mark.parametrize(("status", "attempts"), [(500, 4), (410, 1)])
def test_an_event_is_given_up_in_the_end(
    store: VideoStore, status: int, attempts: int, caplog: pytest.LogCaptureFixture
) -> None:
    with https_server(lambda _: Reply(status)) as server:
        end(store, "video_1")
        with caplog.at_level(logging.WARNING):
            deliver(store, server, lambda: pending(store) == 0)
    assert len(server.got) == attempts
    assert f"dropped: got status {status}" in caplog.text
    assert caplog.text.count(" failed, retrying in ") == attempts - 1


def test_a_day_of_attempts_comes_to_its_end() -> None:
    assert list(webhooks.DELAYS) == sorted(webhooks.DELAYS)
    assert 20 * 3600 < sum(webhooks.DELAYS) <= 24 * 3600


def test_delays_are_kept_in_the_table(store: VideoStore) -> None:
    """In wall-clock time, so that they survive a restart."""
    with https_server(lambda _: Reply(503)) as server:
        end(store, "video_1")
        deliver(store, server, lambda: pending_at(store, 1), delays=(100.0, 200.0))
        (event,) = Outbox(store.database).due(1e12, 10)
        assert 95 < event.next_at - time.time() < 125
        deliver(store, server, lambda: True)
        assert len(server.got) == 1


def pending_at(store: VideoStore, attempts: int) -> bool:
    return all(event.attempts == attempts for event in Outbox(store.database).due(1e12, 10))


def test_what_one_process_leaves_the_next_one_delivers(tmp_path: Path) -> None:
    with closing(VideoStore(tmp_path)) as store, https_server(lambda _: Reply(500)) as server:
        Outbox(store.database)
        end(store, "video_1", "video_2")
        deliver(store, server, lambda: len(server.got) >= 2, delays=(0.01, 0.01, 100.0))
        names = {got.headers["webhook-id"] for got in server.got}
    with closing(VideoStore(tmp_path)) as store, https_server() as server:
        outbox = Outbox(store.database)
        for event in outbox.due(1e12, 10):
            outbox.postpone(event.id, until=0)
        deliver(store, server, lambda: pending(store) == 0)
        assert {got.headers["webhook-id"] for got in server.got} == names


def test_few_are_sent_at_once(store: VideoStore) -> None:
    lock, now, most, gate = threading.Lock(), [0], [0], threading.Event()

    def respond(_: Got) -> Reply:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
            if now[0] == webhooks.MAX_AT_ONCE:
                gate.set()
        gate.wait(20)
        with lock:
            now[0] -= 1
        return Reply()

    with https_server(respond) as server:
        end(store, *(f"video_{number}" for number in range(20)))
        deliver(store, server, lambda: pending(store) == 0)
    assert most[0] == webhooks.MAX_AT_ONCE
    assert len(server.got) == len({got.body for got in server.got}) == 20


def test_private_receivers_get_nothing(store: VideoStore, caplog: pytest.LogCaptureFixture) -> None:
    with https_server() as server:
        strict = server.outbound(FLAG)
        strict.is_allowed = Outbound(AllowedDomains((), FLAG), ()).is_allowed
        end(store, "video_1")
        with caplog.at_level(logging.WARNING):
            deliver(store, server, lambda: pending_at(store, 1), outbound=strict, delays=(100.0,))
        assert not server.got
    assert "an address that is not public" in caplog.text


def flags(*given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    cli_flags.add_outbound_flags(parser)
    return parser.parse_args(given)


URL = ("--webhook-url", "https://hooks.example.com/helios?a=b")


def test_flags_and_secret_make_an_endpoint(
    store: VideoStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    file = ("--webhook-secret-file", str(tmp_path / "secret"))
    made = cli_flags.make_webhooks(flags(*URL, *file, FLAG, "*.example.com"), store)
    assert made is not None
    assert made.endpoint.secrets == (bytes(range(32)),)
    assert made.endpoint.url.target == "/helios?a=b"
    monkeypatch.setenv(cli_flags.SECRET_VARIABLE, SECRET)
    again = cli_flags.make_webhooks(flags(*URL), store)
    assert again is not None
    assert again.endpoint == made.endpoint
    assert cli_flags.SECRET_VARIABLE not in os.environ
    assert cli_flags.make_webhooks(flags(), store) is None


@pytest.mark.parametrize(
    ("given", "secret", "message"),
    [
        (("--webhook-url", "http://a.example/"), SECRET, "got URL scheme 'http', expected https"),
        (
            ("--webhook-url", "https://a:b@a.example/"),
            SECRET,
            "got a URL with a user name or password",
        ),
        ((*URL, FLAG, "other.example"), SECRET, f"expected one of {FLAG}"),
        ((*URL, FLAG, "*"), SECRET, "expected HOST or"),
        (
            URL,
            "whsec_short",
            "HELIOS_WEBHOOK_SECRET: invalid secret, expected whsec_ followed by 24",
        ),
        (URL, SECRET[6:], "invalid secret"),
        (URL, "", "no secret found"),
        (URL, None, "got --webhook-url without a secret"),
        ((*URL, "--webhook-secret-file", "/nowhere"), None, "/nowhere: No such file"),
        ((FLAG, "a.example"), None, "expected --webhook-url too"),
    ],
)
def test_bad_flags_are_refused(
    store: VideoStore,
    given: tuple[str, ...],
    secret: str | None,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if secret is not None:
        monkeypatch.setenv(cli_flags.SECRET_VARIABLE, secret)
    with pytest.raises(InvalidRequestError) as caught:
        cli_flags.make_webhooks(flags(*given), store)
    assert message in str(caught.value)
    assert "whsec_short" not in str(caught.value)


@pytest.mark.slow
def test_a_server_tells_of_every_video_though_it_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The receiver is down at first. Then the server is killed during videos and deliveries."""
    authority, is_up = trustme.CA(), threading.Event()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    (tmp_path / "secret").write_text(SECRET)
    body = {"prompt": "waves", "num_frames": 33, "size": "64x64"}
    with https_server(lambda _: Reply(200 if is_up.is_set() else 500), authority=authority) as hook:
        url = f"https://localhost:{hook.port}/hook"
        secret = ("--webhook-secret-file", str(tmp_path / "secret"))
        start = ("nano", "--device", "cpu", "--webhook-url", url, *secret)
        folder = tmp_path / "data"
        with (
            running_server(folder, *start, module="tests.support.loopback_cli") as server,
            httpx.Client(base_url=server.url, timeout=60) as http,
        ):
            names = [http.post("/v1/videos", json=body).json()["id"] for _ in range(4)]
            doomed = http.post("/v1/videos", json=body | {"num_frames": 3300}).json()["id"]
            http.get(f"/v1/videos/{names[0]}/stream")
            http.post(f"/v1/videos/{doomed}/cancel")
            hook.wait_for(2)
            server.kill()
        is_up.set()
        seen = len(hook.got)
        with running_server(folder, *start, module="tests.support.loopback_cli") as server:
            kinds = wait_for_all(hook, {*names, doomed}, seen)
            assert server.stop() == 0
        with closing(VideoStore(folder)) as store:
            assert pending(store) == 0
    assert kinds == dict.fromkeys(names, "video.completed") | {doomed: "video.failed"}
    by_video: dict[str, set[str]] = {}
    for got in hook.got:
        by_video.setdefault(unwrap(got)["data"]["id"], set()).add(got.headers["webhook-id"])
    assert all(len(ids) == 1 for ids in by_video.values())


def wait_for_all(hook: HttpsServer, names: set[str], seen: int) -> dict[str, str]:
    """Wait for an event of each video, and return the types of those after the first `seen`."""
    came = seen
    while True:
        came = len(hook.wait_for(came + 1))
        events = [unwrap(got) for got in hook.got[seen:came]]
        kinds = {event["data"]["id"]: event["type"] for event in events}
        if kinds.keys() == names:
            return kinds


def test_the_receiver_of_the_documentation_takes_each_event_once(
    store: VideoStore, tmp_path: Path
) -> None:
    text = (Path(__file__).parents[2] / "docs" / "safety.md").read_text()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    code = text.partition("```python\n")[2].partition("```")[0].replace("9000", str(port))
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    attempts: list[int] = []

    def forward(got: Got) -> Reply:
        """Replaces the https proxy. The first response is lost."""
        try:
            answer = httpx.post(f"http://127.0.0.1:{port}/", content=got.body, headers=got.headers)
        except httpx.ConnectError:  # it is still starting
            return Reply(502)
        attempts.append(answer.status_code)
        return Reply(500 if len(attempts) == 1 else answer.status_code)

    try:
        with https_server(forward) as server:
            end(store, "video_1")
            deliver(store, server, lambda: pending(store) == 0, delays=500 * (0.05,))
        other = server.got[-1].body.replace(b"video_1", b"video_2")
        forged = httpx.post(
            f"http://127.0.0.1:{port}/", content=other, headers=server.got[-1].headers
        )
    finally:
        process.terminate()
        said = process.communicate()[0]
    assert (attempts, forged.status_code) == ([204, 204], 401)
    assert said == "video.completed video_1\n"
