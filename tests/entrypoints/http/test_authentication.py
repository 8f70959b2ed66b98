"""Keys of WebSockets, which browsers send as subprotocols, and servers without keys."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import WebSocketRoute
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.websockets import WebSocket

from helios_serve.entrypoints.cli.serve import check_exposure
from helios_serve.entrypoints.http.authentication import Authentication, tenant_of
from helios_serve.errors import InvalidRequestError
from helios_serve.service.key_cache import KeyCache
from helios_serve.store.keys import KeyStore


@pytest.fixture
def keys(tmp_path: Path) -> Iterator[KeyStore]:
    with closing(KeyStore(tmp_path)) as store:
        yield store


async def echo(websocket: WebSocket) -> None:
    """Send back what the application knows about the client."""
    await websocket.accept(websocket.query_params.get("subprotocol"))
    await websocket.send_json(
        {
            "tenant": tenant_of(websocket),
            "subprotocols": websocket.scope["subprotocols"],
            "headers": dict(websocket.headers),
        }
    )
    await websocket.close()


def client_of(keys: KeyStore) -> TestClient:
    app = Starlette(
        routes=[WebSocketRoute("/v1/realtime", echo)],
        middleware=[Middleware(Authentication, keys=KeyCache(keys))],
    )
    return TestClient(app)


def connect(
    client: TestClient, path: str = "/v1/realtime", **options: Any
) -> tuple[Any, str | None]:
    """Return what `echo` sent, and the accepted subprotocol."""
    with client.websocket_connect(path, **options) as session:
        return session.receive_json(), session.accepted_subprotocol


def test_a_websocket_has_its_key_in_a_header_or_a_subprotocol(keys: KeyStore) -> None:
    _, secret = keys.create("acme")
    offered = ["realtime", f"openai-insecure-api-key.{secret}", "openai-beta.realtime-v1"]
    with client_of(keys) as client:
        told, taken = connect(client, headers={"authorization": f"Bearer {secret}"})
        assert (told["tenant"], told["subprotocols"], taken) == ("acme", [], None)
        told, taken = connect(client, subprotocols=offered)
        assert (told["tenant"], taken) == ("acme", "realtime")
        assert told["subprotocols"] == ["realtime", "openai-beta.realtime-v1"]
        assert secret not in str(told)
        path = "/v1/realtime?subprotocol=openai-beta.realtime-v1"
        assert connect(client, path, subprotocols=offered)[1] == "openai-beta.realtime-v1"
        _, taken = connect(client, subprotocols=offered[1:2])
        assert taken is None


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"headers": {"authorization": "Bearer sk-helios-wrong"}},
        {"subprotocols": ["realtime"]},
        {"subprotocols": ["realtime", "openai-insecure-api-key.sk-helios-wrong"]},
    ],
)
def test_a_websocket_without_a_valid_key_is_refused(
    keys: KeyStore, options: dict[str, Any]
) -> None:
    with client_of(keys) as client:
        assert connect(client)[0]["tenant"] == "default"  # as long as there are no keys
    keys.create("acme")
    with (
        client_of(keys) as client,
        pytest.raises(WebSocketDenialResponse) as refused,
        client.websocket_connect("/v1/realtime", **options),
    ):
        pass
    assert refused.value.status_code == 401
    assert refused.value.json()["error"]["code"] == "invalid_api_key"


def test_a_server_that_cannot_answer_a_handshake_closes_it(keys: KeyStore) -> None:
    keys.create("acme")
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("nothing is to be received")

    async def never(*_: Any) -> None:
        raise AssertionError("nobody is to be asked")

    scope = {"type": "websocket", "path": "/v1/realtime", "headers": [], "subprotocols": []}
    asyncio.run(Authentication(never, KeyCache(keys))(scope, receive, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_who_may_be_reached_from_elsewhere(
    keys: KeyStore, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as listener:
        listener.bind(("0.0.0.0", 0))
        with pytest.raises(InvalidRequestError, match="without any API key"):
            check_exposure(listener, keys, is_allowed=False)
        check_exposure(listener, keys, is_allowed=True)
        assert [record.message for record in caplog.records] == [
            "no API keys: anyone who can connect to 0.0.0.0 can use this server"
        ]
        keys.revoke(keys.create("acme").key.id)  # then nobody may use it
        check_exposure(listener, keys, is_allowed=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_this_machine_needs_no_key(keys: KeyStore, host: str) -> None:
    with socket.socket() as listener:
        listener.bind((host, 0))
        check_exposure(listener, keys, is_allowed=False)
