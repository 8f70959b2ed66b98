"""This package beside the pinned packages of the real engines."""

import subprocess
import sys
from pathlib import Path

import pytest

BUILDER = Path(__file__).parent / "environments" / "build.py"


@pytest.mark.parametrize(
    ("name", "engine"),
    [
        pytest.param(
            "vllm_omni", "vllm_omni.diffusion.diffusion_engine", marks=pytest.mark.vllm_omni
        ),
        pytest.param("sglang", "sglang.multimodal_gen.registry", marks=pytest.mark.sglang),
    ],
)
def test_a_video_is_made_beside_the_engine(name: str, engine: str, tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, str(BUILDER), name], check=True, capture_output=True, text=True
    )
    python = Path(built.stdout.strip()) / "bin" / "python"
    program = (
        f"import {engine}\n"
        "from helios_serve.entrypoints.cli.main import main\n"
        "raise SystemExit(main(['generate', 'x', '--num-frames', '33', '--output', 'x.mp4']))\n"
    )
    done = subprocess.run(
        [str(python), "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "x.mp4: 33 frames" in done.stdout
