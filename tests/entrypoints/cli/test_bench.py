"""`helios-serve bench` against the real server."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from helios_serve.entrypoints.cli.main import main
from tests.support.api import wait_until_ready
from tests.support.server import Server, running_server


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that only these tests use, and which can import no benchmark."""
    folder = tmp_path_factory.mktemp("bench") / "data"
    flags = ("nano", "--device", "cpu", "--max-queued", "3")
    with running_server(folder, *flags, module="tests.support.without_benchmarks_cli") as started:
        yield started


def bench(server: Server, folder: Path, *flags: str) -> dict[str, Any]:
    shape = ("--width", "64", "--height", "64", "--num-frames", "66")
    common = ("--base-url", server.url, "--no-self-check", "--result-dir", str(folder))
    main(["bench", "serve", *common, *shape, *flags])
    (path,) = folder.glob("*.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def delta(result: dict[str, Any], name: str) -> float:
    counts: dict[str, float] = result["helios"]["server"]["metrics_delta"]
    return sum(value for key, value in counts.items() if key.startswith(f"helios:{name}{{"))


def test_a_server_without_the_benchmarks_serves(alone: Server) -> None:
    with httpx.Client(base_url=alone.url, timeout=60) as http:
        wait_until_ready(http)


@pytest.mark.parametrize("endpoint", ["/v1/videos", "/v1/realtime/video"])
def test_counts_equal_those_of_the_server(alone: Server, tmp_path: Path, endpoint: str) -> None:
    """Counts are equal. Means agree within 2 %, 20 ms and the client's own delay."""
    result = bench(alone, tmp_path, "--endpoint", endpoint, "--users", "2", "--num-prompts", "4")
    assert result["completed"] == delta(result, "requests_total") == 4
    assert delta(result, "frames_generated_total") == 4 * 66
    assert (
        result["helios"]["metrics"]["icl"]["n"]
        == delta(result, "inter_chunk_latency_seconds_count")
        == 4
    )
    mean = 1000 * delta(result, "time_to_first_chunk_seconds_sum") / 4
    client = result["helios"]["client"]
    allowed = 0.02 * mean + 20 + client["lag_p99_ms"] + client["send_lag_p99_ms"]
    assert abs(result["mean_ttfc_ms"] - mean) < allowed
    assert result["helios"]["server"]["version"]
    assert result["helios"]["timing"] == "media"


def test_refusals_equal_those_of_the_server(alone: Server, tmp_path: Path) -> None:
    result = bench(alone, tmp_path, "--num-prompts", "12")
    refused = result["helios"]["refused"]
    assert refused == {"queue_full": delta(result, "admission_rejections_total")}
    assert refused["queue_full"] > 0
    assert result["completed"] + refused["queue_full"] == 12


def test_prompt_switches_and_clients_that_leave(alone: Server, tmp_path: Path) -> None:
    flags = ("--users", "1", "--num-prompts", "1", "--switch-every", "0.3", "--num-frames", "660")
    result = bench(alone, tmp_path / "switch", "--endpoint", "/v1/realtime/video", *flags)
    (path,) = (tmp_path / "switch").glob("*.sessions.jsonl")
    (record,) = map(json.loads, path.read_text().splitlines())
    assert len(record["switches"]) >= 2
    assert result["completed"] == 1
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"prompt": "a", "num_frames": 33000, "stop_after_ms": 1500}\n')
    replay = ("--dataset-name", "trace", "--dataset-path", str(trace), "--num-warmups", "0")
    result = bench(alone, tmp_path / "leave", *replay)
    assert result["helios"]["cancelled"] == 1
    with httpx.Client(base_url=alone.url, timeout=60) as http:
        newest = http.get("/v1/videos", params={"limit": 1}).json()["data"][0]
    assert newest["error"]["code"] == "cancelled"


@pytest.mark.parametrize("benchmark", ["throughput", "latency"])
def test_the_engine_is_measured_without_a_server(
    benchmark: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = ("--width", "64", "--height", "64", "--num-frames", "40", "--num-prompts", "2")
    flags = ("--device", "cpu", "--executor", "inline", "--result-dir", str(tmp_path))
    assert main(["bench", benchmark, *flags, *shape]) in (0, 1)  # 1: the machine is busy
    (path,) = tmp_path.glob("*.json")
    result = json.loads(path.read_text())
    assert result["completed"] == 2
    assert (result["backend"], result["endpoint_type"]) == (benchmark, "offline")
    assert result["helios"]["loop"] == ("open" if benchmark == "throughput" else "closed")
    assert result["helios"]["timing"] == "engine"
    assert result["max_concurrent_requests"] == (2 if benchmark == "throughput" else 1)
    assert result["helios"]["metrics"]["icl"]["n"] == 2
    assert "nothing is delivered" in capsys.readouterr().out
