"""The time budget of a chunk on a GPU, recomputed: counted work divided by rates.

    python benchmarks/micro/budget.py --gpu h100 --output results.json

Counts FLOPs, bytes and launches of the modules as they are, on the meta device, and predicts from
the rates of `helios_serve.core.gpus`, or from those that `rates.py` measured (--rates). The floor
takes every rate in full and hides every gap. GELU is counted as a step of its own; what its matmul
would save by doing it is printed apart. No number is a measurement of a forward.
"""

import argparse
from pathlib import Path
from typing import Any

from helios_serve.benchmarks.measure.sections import Sections
from helios_serve.core.gpus import GPUS, Gpu
from helios_serve.core.prediction import CHUNK_GAP, COPY_SHARE, Amounts, predict
from helios_serve.engine.sizing import (
    GpuSet,
    amounts_of,
    chunk_work,
    make_setup,
    with_measured_rates,
)
from helios_serve.entrypoints.cli.arguments import size
from helios_serve.model_config import CHUNK_FRAMES
from helios_serve.model_executor.counts import count_forward
from helios_serve.options.sampling import SamplingParams

MODEL = "BestWishYsh/Helios-Distilled"
STEPS = ((1, 1, 1), (2, 2, 2))


def floor_of(amounts: Amounts, gpu: Gpu) -> float:
    """Seconds at the full rates, without gaps."""
    products = (amounts.matmul + amounts.convolution) / gpu.matmul
    return products + amounts.attention / gpu.attention + amounts.elementwise / gpu.copy


def count_lines(name: str, amounts: Amounts) -> str:
    return (
        f"{name:16} {amounts.matmul / 1e12:8.1f} TF matmul {amounts.attention / 1e12:7.1f} TF "
        f"attention {amounts.convolution / 1e12:6.1f} TF convolution "
        f"{amounts.elementwise / 1e9:7.1f} GB elementwise {amounts.launches:6} launches"
    )


def budget(
    machine: GpuSet, params: SamplingParams, quantization: Any, decode_dtype: str
) -> dict[str, Any]:
    """The budget of a chunk: counted work, predicted milliseconds, and frames a second."""
    setup = make_setup(MODEL, params, quantization, decode_dtype)
    work, gpu = chunk_work(setup), machine.gpu
    found: dict[str, Any] = {"steps": setup.params.steps}
    seconds = {}
    for name, amounts in (("denoise", work.denoise), ("decode", work.decode)):
        times = predict(amounts, gpu, fp8=quantization is not None and name == "denoise")
        seconds[name] = times.total
        print(count_lines(f"{name}, counted", amounts))
        parts = ", ".join(f"{kind} {1e3 * value:.0f}" for kind, value in times._asdict().items())
        floor = 1e3 * floor_of(amounts, gpu)
        print(f"{name}, predicted: {1e3 * times.total:.0f} ms ({parts}); floor {floor:.0f} ms")
        found[name] = {
            "counted": amounts._asdict(),
            "predicted_ms": {kind: 1e3 * value for kind, value in times._asdict().items()},
            "floor_ms": floor,
        }
    whole = sum(seconds.values()) + CHUNK_GAP
    found["predicted_fps"] = {
        "denoising": CHUNK_FRAMES / seconds["denoise"],
        "on one GPU": CHUNK_FRAMES / whole,
    }
    steps = ",".join(map(str, setup.params.steps))
    print(
        f"steps {steps}, predicted: {CHUNK_FRAMES / seconds['denoise']:.1f} frames/s denoised, "
        f"{CHUNK_FRAMES / whole:.1f} with the decoder on the same GPU"
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpu", choices=GPUS, default="h100")
    parser.add_argument("--rates", type=Path, metavar="FILE.json")
    parser.add_argument("--size", type=size, default=(640, 384), metavar="WIDTHxHEIGHT")
    parser.add_argument("--quantization", choices=("fp8",))
    parser.add_argument("--decode-dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    arguments = parser.parse_args()
    machine = GpuSet(1, GPUS[arguments.gpu])
    if arguments.rates is not None:
        machine = with_measured_rates(machine, arguments.rates)
    width, height = arguments.size
    sections = Sections(
        arguments.output,
        settings={key: str(value) for key, value in vars(arguments).items() if key != "output"},
        rates=machine.gpu._asdict(),
        source=machine.source,
    )
    setup = make_setup(MODEL, SamplingParams(width=width, height=height))
    gelu = []
    for stage in range(setup.checkpoint.config.stages):
        count = count_forward(
            setup.checkpoint.config, setup.geometry, stage, arguments.quantization
        )
        print(count_lines(f"stage {stage}, counted", amounts_of(count)))
        gelu.append(count.by_name["aten::gelu"].bytes)
    print(f"\n{machine.gpu.title}, {machine.source}")
    rows = []
    for steps in STEPS:
        params = SamplingParams(width=width, height=height, steps=steps)
        row = budget(machine, params, arguments.quantization, arguments.decode_dtype)
        moved = sum(count * size for count, size in zip(steps, gelu, strict=True))
        row["gelu_ms"] = 1e3 * moved / (COPY_SHARE * machine.gpu.copy)
        print(f"of it GELU, {moved / 1e9:.1f} GB counted: {row['gelu_ms']:.0f} ms predicted\n")
        rows.append(row)
        sections.add("budgets", rows)


if __name__ == "__main__":
    main()
