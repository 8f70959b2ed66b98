"""Starting vLLM-Omni with our engine, and refusals to start."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
import requests

from tests.support.omni_server import (
    SMALL,
    START_SECONDS,
    STREAMING,
    OmniServer,
    count_frames,
    omni_server,
)
from tests.support.processes import children, is_python_child
from tests.support.realtime import Chunk, realtime_client

EXECUTOR = "helios_serve.integrations.vllm_omni.HeliosExecutor"

pytestmark = pytest.mark.vllm_omni


def test_with_the_executor_alone_equal_requests_are_batched(
    environment: Path, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    flags = ("--distributed-executor-backend", EXECUTOR, *STREAMING)
    model = checkpoints["distilled"]
    with omni_server(environment, model, tmp_path / "log", *flags) as server:
        assert "use --deploy-config $(helios-serve vllm-omni-config)" in server.said("only req")
        with ThreadPoolExecutor(2) as pool:
            answers = list(
                pool.map(lambda _: server.sync(num_frames=66, num_inference_steps=2), range(2))
            )
        assert [answer.status_code for answer in answers] == [200, 200], answers[0].text
        assert [count_frames(answer.content) for answer in answers] == [66, 66]
        refused = server.sync(num_frames=33, num_inference_steps=2, size="100x64")
        assert "got size 100x64" in refused.text


def test_with_the_executor_alone_requests_run_one_by_one_without_steps(
    environment: Path, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    flags = ("--distributed-executor-backend", EXECUTOR)
    with omni_server(environment, checkpoints["distilled"], tmp_path / "log", *flags) as server:
        assert count_frames(server.sync(num_frames=66).content) == 66
        assert "got size 100x64" in server.sync(num_frames=33, size="100x64").text


def test_a_killed_ray_worker_is_survived(
    environment: Path, checkpoints: dict[str, Path], config: str, tmp_path: Path
) -> None:
    options = '{"helios": {"executor": "ray", "batch_invariant": true}}'
    flags = ("--deploy-config", config, *STREAMING, "--additional-config", options)
    model = checkpoints["distilled"]
    with omni_server(environment, model, tmp_path / "log", *flags) as server:
        expected = watch(server)
        found = re.search(r"ray-0 on node \w+ process (\d+)", server.said("is served by"))
        assert found is not None
        got = watch(server, lambda: os.kill(int(found[1]), signal.SIGKILL))
    assert got == expected


def watch(server: OmniServer, when_begun: Callable[[], None] = lambda: None) -> list[bytes]:
    """Return a video's chunks. `when_begun` is called after the first one."""
    with realtime_client(server.url) as client:
        client.start(**SMALL, num_frames=165)
        first = client.hear()
        assert isinstance(first, Chunk)
        when_begun()
        rest, _ = client.rest()
    return [chunk.data for chunk in (first, *rest)]


def test_a_client_that_goes_leaves_room_for_the_next(
    environment: Path, checkpoints: dict[str, Path], config: str, tmp_path: Path
) -> None:
    """The history pool has room for one of them."""
    options = '{"helios": {"executor": "inline", "history_blocks": 40}}'
    flags = ("--deploy-config", config, *STREAMING, "--additional-config", options)
    with omni_server(environment, checkpoints["distilled"], tmp_path / "log", *flags) as server:
        with realtime_client(server.url) as client:
            client.start(**SMALL, num_frames=6600)
            assert isinstance(client.hear(), Chunk)
        begun = time.monotonic()
        assert count_frames(server.sync(num_frames=33).content) == 33
        assert time.monotonic() - begun < 30


@pytest.mark.slow
def test_an_engine_without_workers_fails_the_health_check(
    environment: Path, checkpoints: dict[str, Path], config: str, tmp_path: Path
) -> None:
    """Its workers worked before; then each is killed, and each of those that replace it."""
    options = '{"helios": {"executor": "local", "device": "cpu", "exit_without_workers": 1}}'
    flags = ("--deploy-config", config, *STREAMING, "--additional-config", options)
    with omni_server(environment, checkpoints["distilled"], tmp_path / "log", *flags) as server:
        host, deadline = server.host(), time.monotonic() + START_SECONDS
        while (health := requests.get(f"{server.url}/health", timeout=30)).status_code == 200:
            assert time.monotonic() < deadline
            for pid in filter(is_python_child, children(host)):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        assert (health.status_code, health.json()["status"]) == (503, "unhealthy")
        assert "no worker can encode" in server.log.read_text()


@pytest.mark.parametrize(
    ("version", "options", "said"),
    [
        ("0.31.0", "{}", "got vLLM-Omni 0.31.0, expected 0.30.x for this helios-serve"),
        (None, '{"helios": {"colour": 1}}', "got unknown option 'colour', expected one of: "),
        (None, '{"helios": {"workers": ["x"]}}', "got workers 'x', expected N, N:ROLES"),
    ],
)
def test_what_does_not_fit_is_told(
    environment: Path,
    checkpoints: dict[str, Path],
    config: str,
    tmp_path: Path,
    version: str | None,
    options: str,
    said: str,
) -> None:
    if version is not None:
        pretend(tmp_path, version)
    command = [str(environment / "bin" / "vllm-omni"), "serve", str(checkpoints["distilled"])]
    flags = ["--omni", "--deploy-config", config, *STREAMING, "--additional-config", options]
    done = subprocess.run(
        [*command, *flags],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode != 0
    assert said in done.stdout


def pretend(folder: Path, version: str) -> None:
    """Make vLLM-Omni appear as another version for processes with `folder` on their path."""
    metadata = folder / f"vllm_omni-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: vllm-omni\nVersion: {version}\n"
    )
