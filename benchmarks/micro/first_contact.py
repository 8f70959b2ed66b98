"""The first ten minutes on a GPU: what runs, and how fast, in at most nine minutes.

    make gpu-first-contact PYTHON=python3
    make gpu-first-contact FLAGS="--device cpu --model nano --size 128x64 --seconds 1"    # a trial

Each step is a program of its own with a time limit. It writes its result as it goes, so that a step
that fails or takes too long loses nothing of the others; the table comes last. Exits with 1 if a
step failed. Nothing is downloaded and no GPU setting is changed.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from helios_serve.benchmarks.measure.sections import Sections

MICRO, ROOT = Path(__file__).parent, Path(__file__).parents[2]
LIMIT = 540
"""Seconds that all steps may take together."""
VERSIONS = """
from helios_serve.engine.versions import describe_installation
print(*describe_installation(), sep="\\n")
"""
FAILED, LATE, SKIPPED, OK = "failed", "too late", "skipped", "ok"


class Step(NamedTuple):
    """A program to run for at most `seconds`; its `result` is a JSON file, if it writes one."""

    name: str
    seconds: int
    command: list[str]
    result: str | None = None
    needs_gpu: bool = False


class Outcome(NamedTuple):
    """How a step ended, after how many seconds, and its last line if it failed."""

    name: str
    status: str
    seconds: float
    reason: str = ""


def steps(arguments: argparse.Namespace) -> list[Step]:
    """What is run, in order: first whether anything works, then the parts, then the whole."""
    tests = ["-W", "default", "-o", "filterwarnings=default", "-p", "no:cacheprovider"]
    return [
        Step("versions", 30, [sys.executable, "-c", VERSIONS]),
        Step(
            "kernels are right",
            70,
            [sys.executable, "-m", "pytest", "-q", *tests, "tests/kernels/test_gpu.py"],
            needs_gpu=True,
        ),
        *measurements(arguments),
    ]


def measurements(arguments: argparse.Namespace) -> Iterator[Step]:
    """Yield the programs that measure."""
    size = ("--size", arguments.size)
    model = ("--device", arguments.device, "--model", arguments.model, *size)
    denoise = (*model, "--rounds", str(arguments.rounds))

    def program(name: str, seconds: int, script: str, result: str, *flags: str) -> Step:
        output = str(arguments.folder / result)
        command = [sys.executable, str(MICRO / script), *flags, "--output", output]
        return Step(name, seconds, command, result, needs_gpu=script == "kernels.py")

    yield program("kernels", 60, "kernels.py", "kernels.json", *size)
    seconds = ("--seconds", str(arguments.seconds))
    yield program("matmul and attention", 45, "rates.py", "rates.json", *denoise, *seconds)
    parts = ("--parts", "forwards,chunks,profile")
    yield program("transformer", 95, "denoise.py", "forwards.json", *denoise, *parts)
    yield program("VAE", 85, "vae.py", "vae.json", *model, "--rounds", "2")
    decoded = ("--parts", "whole-way", "--decode-dtype", arguments.decode_dtype)
    yield program("end to end", 100, "denoise.py", "whole_way.json", *denoise, *decoded)
    # FP8 is there for tests on a CPU, which takes seconds a step.
    parts = ("--parts", "forwards" if arguments.device == "cpu" else "forwards,chunks")
    fp8 = (*parts, "--quantization", "fp8")
    yield program("transformer in FP8", 55, "denoise.py", "fp8.json", *denoise, *fp8)


def run(step: Step, *, has_gpu: bool) -> Outcome:
    """Run a step, showing what it prints. It and its children end with its time."""
    if step.needs_gpu and not has_gpu:
        return Outcome(step.name, SKIPPED, 0.0, "it needs a GPU")
    print(f"== {step.name}: at most {step.seconds} s", flush=True)
    started, last = time.monotonic(), ""
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    timeout = shutil.which("timeout")
    limited = [] if timeout is None else [timeout, "--kill-after=5", str(step.seconds)]
    with subprocess.Popen(
        [*limited, *step.command],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": search_path(environment)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line.strip() or last
    if process.returncode:
        end_children(process.pid)
    seconds = time.monotonic() - started
    if process.returncode in (124, 137):
        return Outcome(step.name, LATE, seconds, f"after: {last}")
    if process.returncode:
        return Outcome(step.name, FAILED, seconds, last)
    return Outcome(step.name, OK, seconds)


def search_path(environment: dict[str, str]) -> str:
    """PYTHONPATH with `tests`, which the kernel tests import, through a link of its own."""
    folder = ROOT / "build" / "tests-path"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "tests").exists():
        (folder / "tests").symlink_to(ROOT / "tests")
    return os.pathsep.join(filter(None, (str(folder), environment.get("PYTHONPATH"))))


def end_children(group: int) -> None:
    """Kill what a failed step may have left in its process group."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def table(results: dict[str, Any], outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Yield the lines of the table: what was measured, then how each step ended."""
    rates = results.get("matmul and attention", {})
    if "matmul_tflops" in rates:
        yield f"matmul                      {rates['matmul_tflops']:10.4g} TFLOP/s"
        yield f"copy                        {rates['copy_gb_per_second']:10.0f} GB/s"
    if "sustained_matmul_tflops" in rates:
        yield f"matmul when warm            {rates['sustained_matmul_tflops']:10.4g} TFLOP/s"
    for stage in rates.get("stages", [])[-1:]:
        for name, rate in stage["attention_tflops"].items():
            yield f"attention {name:18.18}{rate:10.4g} TFLOP/s"
    for name, label in (("transformer", "transformer"), ("transformer in FP8", "FP8")):
        yield from transformer_lines(label, results.get(name, {}))
    for row in results.get("VAE", {}).get("decoding", []):
        label = f"VAE {row['precision']}, {row['variant']}"
        yield f"{label:28.28}{row['seconds'] * 1e3:10.0f} ms a chunk, {row['psnr']:.1f} dB"
    for row in results.get("end to end", {}).get("whole_way", []):
        yield f"end to end {row['steps']!s:17}{row['fps']:10.2f} frames/s"
    for item in outcomes:
        reason = f": {item.reason}" if item.reason else ""
        yield f"{item.name:28}{item.seconds:8.0f} s  {item.status}{reason}"


def transformer_lines(label: str, result: dict[str, Any]) -> Iterator[str]:
    if "kernels" in result:
        yield f"{label}: {result['kernels']}"
    for row in result.get("forwards", []):
        yield (
            f"{label} stage {row['stage']:<10}".ljust(28)
            + f"{row['ms']:10.1f} ms a step, {row['share_of_predicted']:.0%} of what rates predict"
        )
    for row in result.get("denoising", []):
        yield f"{label} {row['steps']!s:16}".ljust(28) + f"{row['fps']:10.2f} frames/s"
    if "peak_memory_gb" in result:
        yield f"{label} memory".ljust(28) + f"{result['peak_memory_gb']:10.1f} GB at most"


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--model", default="BestWishYsh/Helios-Distilled")
    parser.add_argument("--size", default="640x384", metavar="WIDTHxHEIGHT")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0, help="of the sustained matmul")
    parser.add_argument("--decode-dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "benchmarks/results/first_contact", metavar="FOLDER"
    )
    return parser.parse_args(arguments)


def main() -> int:
    arguments = parse_arguments()
    arguments.folder = arguments.folder.resolve()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    sections = Sections(
        arguments.folder / "first_contact.json",
        settings={key: str(value) for key, value in vars(arguments).items()},
    )
    results: dict[str, Any] = {}
    outcomes: list[Outcome] = []
    for step in steps(arguments):
        if step.result is not None:
            (arguments.folder / step.result).unlink(missing_ok=True)  # of an earlier run
        outcomes.append(run(step, has_gpu=arguments.device != "cpu"))
        if step.result is not None and (path := arguments.folder / step.result).exists():
            results[step.name] = json.loads(path.read_text())
            sections.add(step.name, results[step.name])
        sections.add("steps", [item._asdict() for item in outcomes])
    lines = list(table(results, outcomes))
    sections.add("table", lines)
    print("\n" + "\n".join(lines))
    return int(any(item.status in (FAILED, LATE) for item in outcomes))


if __name__ == "__main__":
    sys.exit(main())
