"""The official client for Node, against a server as users start it."""

import json
import os
import subprocess
from pathlib import Path

import httpx2 as httpx
import pytest

from tests.support.server import Server

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "build/node/create_and_download.mjs"


@pytest.mark.slow
def test_the_node_client_gets_what_pythons_gets(
    server: Server, http: httpx.Client, tmp_path: Path
) -> None:
    assert SCRIPT.exists(), "the client for Node is not installed: run `make node` first"
    file = tmp_path / "video.mp4"
    made = subprocess.run(
        ["node", str(SCRIPT), f"{server.url}/v1", str(file)],
        env=os.environ | {"no_proxy": "127.0.0.1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert made.returncode == 0, made.stderr
    video = json.loads(made.stdout)
    assert (video["status"], video["progress"], video["num_frames"]) == ("completed", 100, 40)
    assert video["prompt"] == "a dog runs"
    content = http.get(f"/v1/videos/{video['id']}/content").content
    assert file.read_bytes() == content
    body = {"prompt": "a dog runs", "size": "64x64", "seed": 3, "num_frames": 40}
    assert http.post("/v1/videos/sync", json=body).content == content
