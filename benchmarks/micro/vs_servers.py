"""Compares our server with vLLM-Omni's and SGLang's own Helios, under the same load, in turns.

    python benchmarks/micro/vs_servers.py [--servers helios vllm-omni sglang] [--rounds 3]
        [--model FOLDER] [--result-dir results/peers] [-- FLAGS OF bench serve]

Each round starts each server alone, runs `helios-serve bench serve` with the same trace, and stops
it; every other round has the opposite order. All are timed by polls of the same interval, because
vLLM-Omni and SGLang have nothing better for `/v1/videos`. Without --model the checkpoint is a tiny
distilled one with random weights, which shows the machinery and not the arithmetic. The
environments are those of `make test-vllm-omni` and `make test-sglang`.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests" / "support"))
sys.path.append(str(Path(__file__).parent))
sys.path.append(str(ROOT / "build" / "checked"))

LOAD = ("--num-prompts", "8", "--request-rate", "0.2", "--width", "64", "--height", "64")
SHAPE = ("--num-frames", "33", "--steps", "2,2,2")
NAMES = ("helios", "vllm-omni", "sglang")


@contextmanager
def helios(model: Path, folder: Path) -> Iterator[str]:
    from tests.support.server import running_server

    flags = ("--model", str(model), "--device", "cpu")
    with running_server(folder / "data", *flags, log=folder / "server.log") as server:
        yield server.url


@contextmanager
def vllm_omni(model: Path, folder: Path) -> Iterator[str]:
    """Run vLLM-Omni with its own Helios, which makes one video at a time, and yield its URL."""
    from omni_server import environment, omni_server
    from vs_vllm_omni import cpu_platform

    path = cpu_platform(folder / "platform")
    flags = ("--max-num-seqs", "1")
    with omni_server(environment(), model, folder / "server.log", *flags, python_path=path) as own:
        yield own.url


@contextmanager
def sglang(model: Path, folder: Path) -> Iterator[str]:
    """Run SGLang with its own Helios (our plugin is not selected), and yield its URL."""
    from sglang_server import running_sglang

    os.environ["SGLANG_PLUGINS"] = "none"
    try:
        flags = ("--backend", "sglang", "--model-id", "Helios-Distilled")
        with running_sglang(model, folder, {}, *flags) as server:
            yield str(server.http.base_url)
    finally:
        del os.environ["SGLANG_PLUGINS"]


SERVERS = {"helios": helios, "vllm-omni": vllm_omni, "sglang": sglang}


def measure(name: str, model: Path, arguments: argparse.Namespace, number: int) -> int:
    """Start a server, put the load on it, and stop it. Returns the benchmark's exit status."""
    with tempfile.TemporaryDirectory() as folder, SERVERS[name](model, Path(folder)) as url:
        command = [
            *(sys.executable, "-P", "-m", "helios_serve", "bench", "serve"),
            *("--backend", name, "--base-url", url, "--timing", "poll"),
            *("--poll-interval", "0.2", "--label", f"{name}, round {number + 1}"),
            *("--result-dir", str(arguments.result_dir)),
            *("--result-filename", f"{name}-{number + 1}.json", "--disable-tqdm"),
            *("--percentile-metrics", "e2el,e2e_rtf"),
            *(LOAD + SHAPE),
            *arguments.flags,
        ]
        return subprocess.run(command, check=False).returncode


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--servers", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="a distilled checkpoint")
    parser.add_argument("--result-dir", type=Path, default=Path("results/peers"))
    parser.add_argument("flags", nargs="*", help="flags of bench serve, after --")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model
        if model is None:
            from tiny_checkpoint import write_tiny_checkpoints

            model = write_tiny_checkpoints(Path(folder))["distilled"]
        statuses = [
            measure(name, model, arguments, number)
            for number in range(arguments.rounds)
            for name in (arguments.servers if number % 2 == 0 else arguments.servers[::-1])
        ]
    sys.exit(max(statuses))


if __name__ == "__main__":
    main()
