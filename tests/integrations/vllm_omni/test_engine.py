"""What can be seen from inside vLLM-Omni's process only."""

import json
import subprocess
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor, cat

from helios_serve.model_executor.worker.tensors import as_tensor
from helios_serve.offline import Helios

PROGRAM = Path(__file__).parents[2] / "support" / "omni_program.py"
TOLERANCE = 1e-3
FAULTS = {
    "no-chunk": ("KeyError: 'lost'", None),
    "no-memory": ("MemoryError: out of memory", None),
    "odd-size": ("got size 100x64, expected", 400),
}
"""A part of the message, and the status, of each request of `omni_program.py faults`."""

pytestmark = pytest.mark.vllm_omni


def run_program(environment: Path, name: str, model: Path, output: Path) -> None:
    """Run `omni_program.py` in the environment of vLLM-Omni."""
    command = [str(environment / "bin" / "python"), str(PROGRAM), name, str(model), str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]


def alone(model: Helios, frames: int, shape: torch.Size) -> Tensor:
    """Return the latents of the same request from helios-serve alone."""
    height, width = (8 * side for side in shape[-2:])
    made = model.generate(
        "a dog", num_frames=frames, width=width, height=height, seed=frames, steps=(1, 1, 1)
    )
    return cat([as_tensor(part) for part in made.latents], dim=2)


def test_latents_equal_those_of_helios_serve_alone(
    environment: Path, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """Three sizes and lengths are generated together. Other seeds give other videos."""
    output = tmp_path / "latents.pt"
    run_program(environment, "latents", checkpoints["distilled"], output)
    model = Helios(str(checkpoints["distilled"]), device="cpu")
    made = torch.load(output)
    assert sorted(made) == [66, 99, 198]
    for frames, latents in made.items():
        assert latents.shape[2] == 9 * frames // 33
        expected = alone(model, frames, latents.shape)
        assert (latents - expected).abs().max() < TOLERANCE < expected.std()


def test_an_abort_frees_the_blocks_within_two_steps(
    environment: Path, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    output = tmp_path / "abort.json"
    run_program(environment, "abort", checkpoints["distilled"], output)
    report = json.loads(output.read_text())
    assert report["heard"][0] is False
    assert report["heard"][-1] == "aborted"
    assert report["used_before"] > 0 == report["used_behind"]
    assert report["steps"] <= 2


def test_a_request_that_fails_in_a_call_of_several_fails_alone(
    environment: Path, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """With any exception, and in both calls of the executor that have several requests."""
    output = tmp_path / "faults.json"
    run_program(environment, "faults", checkpoints["distilled"], output)
    report = json.loads(output.read_text())
    for call in ("batch", "step"):
        failed = {name: report["results"][f"{name}-{call}"] for name in FAULTS}
        assert failed == {name: [mock.ANY, status] for name, (_, status) in FAULTS.items()}
        for name, (text, _) in FAULTS.items():
            assert text in failed[name][0]
        assert report["results"][f"sound-{call}"] == [None, None]
    whole = [1, 66, 64, 64, 3]
    assert report["frames"] == {"sound-batch": whole, "sound-step": whole}
    assert report["left"] == []
