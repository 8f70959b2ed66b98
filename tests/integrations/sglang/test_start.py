"""How the real SGLang starts with us, or says why it does not."""

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.sglang_server import START_SECONDS, environment, failing_sglang, running_sglang

pytestmark = pytest.mark.sglang


@pytest.mark.parametrize(
    ("options", "flags", "message"),
    [
        ({"colour": 1}, (), "helios: got unknown option 'colour', expected one of: "),
        ({}, ("--num-gpus", "2"), "got --num-gpus 2, expected 1: to use more GPUs"),
    ],
)
def test_a_wrong_option_is_told(
    checkpoints: dict[str, Path],
    tmp_path: Path,
    options: dict[str, Any],
    flags: tuple[str, ...],
    message: str,
) -> None:
    said = failing_sglang(checkpoints["distilled"], tmp_path, options, *flags)
    assert message in said.strip().splitlines()[-1]


@pytest.mark.parametrize(
    "options",
    [
        {"executor": "local", "workers": ["1:encode+decode", "1:denoise"]},
        {"executor": "ray"},
    ],
    ids=("local", "ray"),
)
def test_workers_may_be_elsewhere(
    checkpoints: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.chdir(checkpoints["base"].parent)
    with running_sglang(Path("base"), tmp_path, options | {"device": "cpu"}) as server:
        fields = {"size": "64x64", "num_frames": 33, "num_inference_steps": 2, "seed": 3}
        name = server.create(prompt="a dog runs", **fields)
        assert server.finished(name)["status"] == "completed"


@pytest.mark.slow
def test_an_engine_without_workers_fails_the_health_check(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    options = {"executor": "local", "device": "cpu", "exit_without_workers": 1}
    with running_sglang(checkpoints["distilled"], tmp_path, options) as server:
        deadline = time.monotonic() + START_SECONDS
        while (health := server.http.get("/health")).status_code == 200:
            assert time.monotonic() < deadline
            for pid in server.workers:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        assert health.status_code == 503
        assert "Scheduler worker exited" in health.text
        assert "no worker can encode" in server.log.read_text()


PROGRAM = """
import sys
from sglang.multimodal_gen import DiffGenerator

if __name__ == "__main__":
    model, folder = sys.argv[1:]
    generator = DiffGenerator.from_pretrained(
        model_path=model, pipeline_config_path=f"{folder}/pipeline.json", warmup_mode="off"
    )
    params = {"width": 64, "height": 64, "num_frames": 40, "output_path": folder}
    made = generator.generate(
        sampling_params_kwargs=params | {"prompt": "a dog runs", "num_outputs_per_prompt": 2}
    )
    print("made", len(made))
    generator.shutdown()
"""


def test_its_python_api_makes_videos(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "pipeline.json").write_text('{"helios": {"device": "cpu"}}')
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [environment() / "bin" / "python", program, checkpoints["distilled"], tmp_path],
        capture_output=True,
        text=True,
        check=False,
        timeout=START_SECONDS,
    )
    assert "made 2" in done.stdout, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert len(list(tmp_path.glob("*.mp4"))) == 2


@pytest.mark.parametrize(
    ("module", "returncode", "message"),
    [
        ("helios_serve.integrations.sglang", 1, "HeliosError: got SGLang 0.4.1, expected 0.5.23"),
        ("helios_serve.integrations.sglang_plugin", 0, "Helios uses SGLang's own pipeline"),
    ],
)
def test_another_release_is_told(
    tmp_path: Path, module: str, returncode: int, message: str
) -> None:
    other = tmp_path / "sglang-0.4.1.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: sglang\nVersion: 0.4.1\n")
    program = f"import {module} as m; getattr(m, 'register_helios', int)()"
    done = subprocess.run(
        [str(environment() / "bin" / "python"), "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == returncode, done.stderr
    assert message in done.stderr.strip().splitlines()[-1]
