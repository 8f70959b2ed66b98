"""vLLM-Omni's own /v1/videos and /v1/videos/sync."""

import io
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import requests
from PIL import Image

from tests.support.lora_files import write_lora
from tests.support.models import load_model, loaded
from tests.support.omni_server import STEPS, OmniServer, count_frames, differ

pytestmark = pytest.mark.vllm_omni


@pytest.fixture(scope="module")
def sea(server: OmniServer) -> bytes:
    """Create a video of 99 frames from text, and return the file."""
    answer = server.sync(num_frames=99)
    assert answer.status_code == 200, answer.text
    return answer.content


def test_all_frames_come_at_once(sea: bytes) -> None:
    assert count_frames(sea) == 99


def test_jobs_have_all_frames(server: OmniServer, sea: bytes) -> None:
    form = {"prompt": "a dog", "size": "64x64", "fps": "24", "seed": "3", "num_frames": "99"}
    form["extra_params"] = str(STEPS).replace("'", '"')
    files = {name: (None, value) for name, value in form.items()}
    job = requests.post(f"{server.url}/v1/videos", files=files, timeout=30).json()
    deadline = time.monotonic() + 60
    while job["status"] in ("queued", "in_progress"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
        job = requests.get(f"{server.url}/v1/videos/{job['id']}", timeout=30).json()
    assert (job["status"], job["num_frames"]) == ("completed", 99)
    made = requests.get(f"{server.url}/v1/videos/{job['id']}/content", timeout=30).content
    assert differ(made, sea) == 0


def test_an_image_is_gone_on_from(server: OmniServer, sea: bytes) -> None:
    picture = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (48, 100, 3), np.uint8)
    Image.fromarray(noise).save(picture, "PNG")
    answer = server.sync(num_frames=99, input_reference=("x.png", picture.getvalue(), "image/png"))
    assert answer.status_code == 200, answer.text
    assert count_frames(answer.content) == 99
    assert differ(answer.content, sea) > 2


def test_a_video_is_gone_on_from(server: OmniServer, sea: bytes) -> None:
    answer = server.sync(num_frames=99, input_references=("x.mp4", sea, "video/mp4"))
    assert answer.status_code == 200, answer.text
    assert count_frames(answer.content) == 99
    assert differ(answer.content, sea) > 2


def test_lora_comes_by_its_own_field(
    server: OmniServer, sea: bytes, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    transformer = loaded(load_model(str(checkpoints["distilled"])).transformer)
    path = write_lora(tmp_path / "lora.safetensors", transformer)
    lora = f'{{"name": "x", "path": "{path}", "scale": 0.0}}'
    without = server.sync(num_frames=99, lora=lora)
    assert differ(without.content, sea) == 0
    changed = server.sync(num_frames=99, lora=lora.replace("0.0", "1.0"))
    assert changed.status_code == 200, changed.text
    assert differ(changed.content, sea) > 2


def test_a_video_fails_alone(server: OmniServer, sea: bytes, tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    path.write_bytes(b"no adapter at all")
    lora = f'{{"name": "x", "path": "{path}"}}'
    with ThreadPoolExecutor(2) as pool:
        good = pool.submit(server.sync, num_frames=99)
        bad = pool.submit(server.sync, num_frames=99, lora=lora).result()
    assert bad.status_code == 500
    assert "damaged or not a safetensors file" in bad.json()["error"]["message"]
    assert differ(good.result().content, sea) == 0


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"size": "100x64"}, "got size 100x64, expected WIDTHxHEIGHT with both sides multiples"),
        ({"extra_params": {"colour": 1}}, "got unknown option 'colour', expected one of: "),
        ({"extra_params": {"steps": [1, 2]}}, "got 2 step counts (1,2), expected 3"),
        ({"extra_params": {"image": "/etc/passwd"}}, "got image in extra_params of type str"),
        ({"num_outputs_per_prompt": 2}, "got 2 outputs per prompt, expected 1"),
        ({"lora": '{"name": "x", "path": "/nowhere"}'}, "/nowhere"),
    ],
)
def test_a_clients_mistakes_are_its_own(
    server: OmniServer, fields: dict[str, object], said: str
) -> None:
    answer = server.sync(num_frames=33, **fields)
    assert answer.status_code == 400, answer.text
    assert said in answer.json()["error"]["message"]
