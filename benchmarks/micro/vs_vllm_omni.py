"""Compares vLLM-Omni's own Helios with ours, inside the same server, on the same requests.

    python benchmarks/micro/vs_vllm_omni.py [--model FOLDER] [--output results.json]

Live sessions that start one after the other on vLLM-Omni's WebSocket: time to first chunk of each,
until all have ended, and frames received, once with vLLM-Omni's own Helios and once with ours. Its
own takes one session at a time, so that it runs with --max-num-seqs 1. Each server makes a short
video before anything is timed. Without --model it is a tiny distilled checkpoint with random
weights, which shows the machinery and not the arithmetic. The environment with vLLM-Omni is that of
`make test-vllm-omni`.
"""

import argparse
import json
import platform
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests" / "support"))

import torch  # noqa: E402
from omni_server import OmniServer, deploy_config, environment, omni_server  # noqa: E402
from realtime import Chunk, realtime_client  # noqa: E402
from tiny_checkpoint import write_tiny_checkpoints  # noqa: E402

from helios_serve.entrypoints.cli.arguments import size, steps  # noqa: E402

STREAMING = ("--step-execution", "--diffusion-streaming-output")


class Watched(NamedTuple):
    """What a client received: seconds since the first session began, and frames."""

    begun: float
    first_chunk: float
    ended: float
    frames: int


def watch(server: OmniServer, begun: float, delay: float, fields: dict[str, Any]) -> Watched:
    """Run a session that starts `delay` seconds after the first."""
    time.sleep(max(0, begun + delay - time.perf_counter()))
    came, frames = [], 0
    with realtime_client(server.url) as client:
        client.start(**fields)
        while isinstance(message := client.hear(), Chunk):
            came.append(time.perf_counter() - begun)
            frames += message.metadata["num_frames"]
    if message["type"] != "session.done":
        raise SystemExit(f"a session failed: {message}")
    return Watched(delay, came[0], time.perf_counter() - begun, frames)


def run(server: OmniServer, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run all sessions, and return a summary of what their clients received."""
    watch(server, time.perf_counter(), 0, fields(arguments, seed=0, frames=33))
    begun = time.perf_counter()
    with ThreadPoolExecutor(arguments.sessions) as pool:
        watched = list(
            pool.map(
                lambda index: watch(
                    server,
                    begun,
                    index * arguments.stagger,
                    fields(arguments, seed=index, frames=33 * arguments.chunks),
                ),
                range(arguments.sessions),
            )
        )
    return {
        "first_chunk_s": [item.first_chunk - item.begun for item in watched],
        "total_s": max(item.ended for item in watched),
        "frames": [item.frames for item in watched],
    }


def fields(arguments: argparse.Namespace, *, seed: int, frames: int) -> dict[str, Any]:
    """Return the fields of a session, the same for both. Ours ignores those for vLLM-Omni's."""
    width, height = arguments.size
    return {
        "prompt": "a dog runs over a green hill",
        "size": f"{width}x{height}",
        "num_frames": frames,
        "fps": 24,
        "seed": seed,
        "guidance_scale": 1.0,
        "num_inference_steps": sum(arguments.steps),
        "extra_params": {
            "is_enable_stage2": True,
            "pyramid_num_inference_steps_list": list(arguments.steps),
        },
    }


def cpu_platform(folder: Path) -> Path:
    """Write a folder for Python's path in which vLLM-Omni finds the CPU platform. Returns it."""
    metadata = folder / "omni_cpu_platform-0.dist-info"
    metadata.mkdir(parents=True, exist_ok=True)
    (metadata / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: omni-cpu-platform\nVersion: 0\n"
    )
    (metadata / "entry_points.txt").write_text(
        "[vllm_omni.platform_plugins]\ncpu = omni_cpu_platform:name_of_platform\n"
    )
    for name in ("omni_cpu_platform.py", "omni_cpu_attention.py"):
        shutil.copy(Path(__file__).with_name(name), folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="a pyramid checkpoint")
    parser.add_argument("--sessions", type=int, default=4)
    parser.add_argument("--chunks", type=int, default=5)
    parser.add_argument("--stagger", type=float, default=0.5, metavar="SECONDS")
    parser.add_argument("--size", type=size, default=(128, 64), metavar="WIDTHxHEIGHT")
    parser.add_argument("--steps", type=steps, default=(2, 2, 2), metavar="N,N,N")
    parser.add_argument("--executor", choices=("inline", "local"), default="local", help="ours")
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    arguments = parser.parse_args()
    folder = environment()
    options = json.dumps({"helios": {"executor": arguments.executor}})
    ours = ("--deploy-config", deploy_config(folder / "bin"), "--additional-config", options)
    results = {}
    with tempfile.TemporaryDirectory() as scratch:
        model = arguments.model or write_tiny_checkpoints(Path(scratch))["distilled"]
        for name, flags in (
            ("vllm-omni", ("--max-num-seqs", "1")),
            ("helios-serve", (*ours, "--max-num-seqs", "16")),
        ):
            log = Path(scratch) / f"{name}.log"
            path = None if torch.cuda.is_available() else cpu_platform(Path(scratch) / "plugins")
            with omni_server(folder, model, log, *flags, *STREAMING, python_path=path) as server:
                results[name] = row = run(server, arguments)
            first = " ".join(f"{seconds:6.2f}" for seconds in row["first_chunk_s"])
            print(
                f"{name:>12}: first chunks after {first} s, all after {row['total_s']:.2f} s, "
                f"frames {row['frames']}"
            )
    if arguments.output is not None:
        machine = f"{platform.machine()} CPU"
        setting = {
            "machine": machine,
            "model": str(arguments.model or "tiny distilled"),
            "sessions": arguments.sessions,
            "stagger_s": arguments.stagger,
            "chunks": arguments.chunks,
            "size": "{}x{}".format(*arguments.size),
            "steps": list(arguments.steps),
            "executor": arguments.executor,
        }
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(setting | {"results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
