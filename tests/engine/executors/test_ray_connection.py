"""Addresses without a Ray cluster give a one-line error soon, and do not end the process."""

import socket
import threading
import time
from collections.abc import Iterator
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import pytest

from helios_serve.entrypoints.cli.main import main
from helios_serve.errors import DeviceError
from helios_serve.model_executor.executor import ray_connection
from helios_serve.model_executor.executor.ray_connection import check_cluster
from tests.support.command_line import without_progress


@pytest.fixture
def dead() -> str:
    """Return an address at which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def silent() -> Iterator[str]:
    """Yield the address of a server that accepts connections and sends nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def web() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def refusal(address: str) -> str:
    with pytest.raises(DeviceError) as caught:
        check_cluster(address)
    text = str(caught.value)
    assert text.startswith(f"got --ray-address {address}, expected the address of a running Ray")
    assert "\n" not in text
    return text


def test_a_dead_address_is_refused_at_once(dead: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not asked until the time for an answer is over."""
    monkeypatch.setattr(ray_connection, "PROBE_SECONDS", 1000.0)
    started = time.monotonic()
    assert "Connection refused" in refusal(dead)
    assert "Connection refused" in refusal(f"ray://{dead}")
    assert time.monotonic() - started < 100


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.0.0.1:99999", "Port out of range"),
        ("localhost:ray", "Port could not be cast to integer"),
        ("ray://localhost", "the address lacks a host or a port"),
        ("[::1:6379", "Invalid IPv6 URL"),
    ],
)
def test_an_address_that_is_not_valid_is_refused(address: str, reason: str) -> None:
    assert reason in refusal(address)


@pytest.mark.parametrize("kind", ["silent", "web"])
def test_a_server_of_another_kind_is_refused_in_time(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_connection, "PROBE_SECONDS", 1.0)
    assert "it did not accept a connection within 1 s" in refusal(request.getfixturevalue(kind))


def test_auto_names_a_dead_cluster(dead: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_connection, "PROBE_SECONDS", 1.0)
    monkeypatch.setenv("RAY_ADDRESS", dead)
    assert "within 1 s" in refusal("auto")


def test_what_ray_raises_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = ray_connection.PROBE.replace("import ray\n", "ray = None\n")
    monkeypatch.setattr(ray_connection, "PROBE", probe)
    assert "AttributeError: 'NoneType' object has no attribute 'init'" in refusal("auto")
    monkeypatch.setattr(ray_connection, "PROBE", "import os; os.abort()")
    assert "Ray ended with status -6" in refusal("auto")
    monkeypatch.setattr(ray_connection, "PROBE", "")
    check_cluster("auto")


def test_limits_leave_room_for_half_a_minute() -> None:
    assert ray_connection.TCP_SECONDS + ray_connection.PROBE_SECONDS <= 22


@pytest.mark.parametrize("command", ["serve", "run-batch"])
def test_commands_end_with_one_line(
    command: str, dead: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    batch = tmp_path / "batch.jsonl"
    batch.write_text('{"custom_id": "a", "body": {"prompt": "a calm sea"}}\n')
    folder = str(tmp_path / "data")
    own = {
        "serve": ["serve", "--port", "0"],
        "run-batch": ["run-batch", str(batch), "--output", str(tmp_path / "out")],
    }
    status = main([*own[command], "--data-dir", folder, "--ray-address", dead])
    assert status == 2
    (line,) = without_progress(capsys.readouterr().err)
    assert line.startswith(f"helios-serve: error: got --ray-address {dead}, expected")
