"""The programs of benchmarks/micro for GPUs: they end with the error, and keep what they have."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helios_serve.benchmarks.measure.sections import Sections
from helios_serve.benchmarks.micro import denoise, first_contact, kernels, rates
from helios_serve.benchmarks.micro.first_contact import FAILED, LATE, OK, SKIPPED, Outcome, Step
from helios_serve.core.cost import layer_flops
from helios_serve.kernels import registry
from helios_serve.model_config import Geometry
from helios_serve.model_executor.loader import open_checkpoint
from helios_serve.model_executor.models.helios.transformer import HeliosTransformer

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
SMALL = ("--device", "cpu", "--model", "nano", "--size", "64x64", "--rounds", "1")


def test_a_result_is_on_disk_after_each_section(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "result.json"
    sections = Sections(path, settings={"size": "640x384"})
    assert json.loads(path.read_text()) == {"settings": {"size": "640x384"}}
    sections.add("first", [1.5])
    assert json.loads(path.read_text()) == {"settings": {"size": "640x384"}, "first": [1.5]}
    assert [item.name for item in path.parent.iterdir()] == ["result.json"]
    Sections(None, first=1).add("second", 2)


def measure(monkeypatch: pytest.MonkeyPatch, *flags: str) -> None:
    monkeypatch.setattr(rates.Rates, "product", lambda *_: 1e12)
    monkeypatch.setattr(rates.Rates, "_copy", lambda _: 1e9)
    monkeypatch.setattr(sys, "argv", ["denoise.py", *SMALL, *flags])
    denoise.main()


def test_a_step_that_fails_ends_the_run_and_keeps_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runner turns the error into a session's failure; steps without sessions are fast."""
    path, forward, calls = tmp_path / "result.json", HeliosTransformer.forward, 0

    def breaking(module: HeliosTransformer, segments: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > 20:  # forwards are measured, chunks are not
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        flow: Tensor = forward(module, segments)
        return flow

    monkeypatch.setattr(denoise, "CHUNKS", 3)
    monkeypatch.setattr(HeliosTransformer, "forward", breaking)
    with pytest.raises(SystemExit, match="a step failed, .*: .*illegal memory access"):
        measure(monkeypatch, "--parts", "forwards,chunks", "--output", str(path))
    found = json.loads(path.read_text())
    assert found["kernels"] == "reference kernels, attention by cpu"
    assert [row["attention"] for row in found["forwards"]] == ["cpu"] * 3
    assert "denoising" not in found


def test_diffusers_runs_last_and_its_failure_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "result.json"
    freed: list[torch.device] = []
    monkeypatch.setattr(denoise, "measure_whole_way", lambda *_: [{"fps": 24.0}])
    monkeypatch.setattr(denoise, "release_cached", freed.append)

    def failing(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert freed, "the child started while this process held memory"
        assert json.loads(path.read_text())["whole_way"] == [{"fps": 24.0}]
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(subprocess, "run", failing)
    with pytest.raises(SystemExit, match=r"vs_diffusers.py ended with status 1"):
        measure(monkeypatch, "--parts", "whole-way,diffusers", "--output", str(path))


def test_attention_is_predicted_by_the_path_that_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def noting(tensor: Tensor, path: str) -> registry.Kernels:
        asked.append(path)
        return registry.kernels_of(tensor)

    monkeypatch.setattr(rates.Rates, "product", lambda *_: 1e12)
    monkeypatch.setattr(rates.Rates, "_copy", lambda _: 1e9)
    monkeypatch.setattr(rates, "kernels_of", noting)
    measured = rates.Rates(rates.Clock(CPU), torch.float32, 1)
    assert measured.attention(9, 12, 2, 16, "flash3") > 0
    assert asked == ["flash3"]


def test_the_products_of_a_layer_are_those_of_its_flops() -> None:
    config = open_checkpoint("BestWishYsh/Helios-Distilled", "dummy").config
    products = rates.layer_products(config, Geometry(384, 640), 2)
    flops = sum(2 * item.rows * item.inner * item.columns for item in products)
    assert products[0].rows == 11040
    assert flops == layer_flops(config.transformer, 11040, 11040, 8640).linear


def program(code: str, *, seconds: int = 30, needs_gpu: bool = False) -> Step:
    return Step("step", seconds, [sys.executable, "-c", code], needs_gpu=needs_gpu)


def test_a_step_ends_with_its_time() -> None:
    started = time.monotonic()
    code = "import time; print('begun', flush=True); time.sleep(60)"
    outcome = first_contact.run(program(code, seconds=1), has_gpu=False)
    assert (outcome.status, outcome.reason) == (LATE, "after: begun")
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(
    ("code", "status", "reason"),
    [
        ("print('fine')", OK, ""),
        ("raise SystemExit('CUDA error')", FAILED, "CUDA error"),
        ("import os; os.kill(os.getpid(), 11)", FAILED, ""),
    ],
)
def test_a_step_tells_how_it_ended(code: str, status: str, reason: str) -> None:
    outcome = first_contact.run(program(code), has_gpu=False)
    assert (outcome.status, outcome.reason) == (status, reason)


def test_steps_that_need_a_gpu_are_skipped_without_one() -> None:
    outcome = first_contact.run(program("1 / 0", needs_gpu=True), has_gpu=False)
    assert outcome == Outcome("step", SKIPPED, 0.0, "it needs a GPU")


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_all_steps_fit_into_nine_minutes_and_are_called_as_they_are(device: str) -> None:
    arguments = first_contact.parse_arguments(["--device", device, "--folder", "/tmp/x"])
    steps = first_contact.steps(arguments)
    assert sum(step.seconds for step in steps) <= first_contact.LIMIT <= 9 * 60
    parsers = {"denoise.py": denoise.parse_arguments, "kernels.py": kernels.parse_arguments}
    found = 0
    for step in steps:
        script = Path(step.command[1])
        assert script.name == "-c" or script.name == "-m" or script.exists()
        if script.name in parsers:
            parsers[script.name](step.command[2:])
            found += 1
    assert found == 4


def test_the_table_comes_last_and_a_failure_is_its_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = {"kernels": "triton kernels", "denoising": [{"steps": [1, 1, 1], "fps": 36.0}]}
    path, text = str(tmp_path / "x.json"), json.dumps(result)
    code = f"import pathlib; pathlib.Path({path!r}).write_text({text!r})"
    made = [
        Step("transformer", 30, [sys.executable, "-c", code], "x.json"),
        Step("VAE", 30, [sys.executable, "-c", "raise SystemExit('out of memory')"]),
    ]
    monkeypatch.setattr(first_contact, "steps", lambda _: made)
    monkeypatch.setattr(sys, "argv", ["first_contact.py", "--folder", str(tmp_path)])
    assert first_contact.main() == 1
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"transformer \[1, 1, 1\] +36.00 frames/s", lines[-3])
    assert re.fullmatch(r"transformer +\d+ s  ok", lines[-2])
    assert re.fullmatch(r"VAE +\d+ s  failed: out of memory", lines[-1])
    written = json.loads((tmp_path / "first_contact.json").read_text())
    assert written["transformer"] == result
    assert written["table"] == lines[-4:]


def dry_run(*words: str) -> str:
    done = subprocess.run(
        ["make", "-n", *words], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout.replace("\\\n", " ")


def test_every_part_on_a_gpu_ends_within_eight_minutes() -> None:
    lines = [
        line for line in dry_run("bench-gpu").splitlines() if "python3 benchmarks/micro/" in line
    ]
    assert len(lines) == 6
    for line in lines:
        found = re.search(r"timeout --kill-after=10 (\d+) python3", line)
        assert found is not None, line
        assert int(found[1]) + 10 <= 8 * 60


def test_wheels_are_those_of_the_targets_python() -> None:
    assert "--python-version 3.13 " in dry_run("-B", "wheels", "TARGET_PYTHON=3.13")
    assert "-d build/wheels/3.12 " in dry_run("-B", "wheels")
