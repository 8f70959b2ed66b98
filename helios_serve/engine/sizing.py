"""Predicts what a model needs and delivers on GPUs, from counted work and rates of GPUs."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from helios_serve.core.gpus import GPUS, Gpu
from helios_serve.core.prediction import (
    ENCODE_SECONDS,
    Amounts,
    ChunkWork,
    Layout,
    LayoutRate,
    layouts,
    rate_of,
)
from helios_serve.errors import InvalidRequestError, StorageError
from helios_serve.model_config import CHUNK_FRAMES, Geometry
from helios_serve.model_executor.components import PARTS_OF_ROLE, build_parts
from helios_serve.model_executor.counts import Count, count_decode, count_forward
from helios_serve.model_executor.device import DTYPES
from helios_serve.model_executor.loader import Checkpoint, open_checkpoint
from helios_serve.model_executor.weights import weight_bytes
from helios_serve.options.sampling import ResolvedParams, SamplingParams
from helios_serve.options.workers import ROLES, Quantization, Role

WEIGHT_SHARE = 0.9
"""Share of a GPU's memory that weights may take: the rest is for activations and sessions."""
STAGES_APART: tuple[tuple[Role, ...], ...] = (("denoise",), ("encode", "decode"))
TYPICAL_PIXELS = 640 * 384
"""Pixels of the frames for which ENCODE_SECONDS is meant."""


class GpuSet(NamedTuple):
    """GPUs of one kind. `source` says where its rates come from."""

    number: int
    gpu: Gpu
    source: str = "published rates"


class Setup(NamedTuple):
    """What is to be served: a checkpoint, how videos are sampled, and the precisions."""

    checkpoint: Checkpoint
    params: ResolvedParams
    quantization: Quantization | None = None
    decode_dtype: str = "bfloat16"

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.params.height, self.params.width)


class Row(NamedTuple):
    """A layout with its predicted rate and the counted weights on its fullest GPU, in GB."""

    rate: LayoutRate
    weights_gb: float
    fits: bool


def parse_gpus(text: str) -> GpuSet:
    """Parse COUNTxNAME, such as 8xh100. Raises InvalidRequestError for any other text."""
    match = re.fullmatch(r"([1-9]\d?)x(\w+)", text.lower())
    if match is None or match[2] not in GPUS:
        raise InvalidRequestError(
            f"got GPUs {text!r}, expected COUNTxNAME such as 8xh100, with one of: "
            f"{', '.join(GPUS)}",
            param="gpus",
        )
    return GpuSet(int(match[1]), GPUS[match[2]])


def with_measured_rates(machine: GpuSet, path: Path) -> GpuSet:
    """Return `machine` with the rates that benchmarks/micro/rates.py wrote to `path`.

    Raises StorageError for a file that cannot be read, and InvalidRequestError for another one.
    """
    try:
        found = json.loads(path.read_text())
        attention = max(found["stages"][-1]["attention_tflops"].values())
        gpu = machine.gpu._replace(
            matmul=1e12 * found["matmul_tflops"],
            attention=1e12 * attention,
            copy=1e9 * found["copy_gb_per_second"],
        )
        return machine._replace(gpu=gpu, source=f"rates measured on {found['hardware']}")
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise InvalidRequestError(
            f"got rates {path}, expected a file that benchmarks/micro/rates.py wrote", param="rates"
        ) from error


def make_setup(
    model: str,
    params: SamplingParams,
    quantization: Quantization | None = None,
    decode_dtype: str = "bfloat16",
) -> Setup:
    """Read the configuration of `model` and resolve `params`. Downloads no weights.

    `decode_dtype` auto is that of GPUs. Raises CheckpointError or InvalidRequestError.
    """
    checkpoint = open_checkpoint(model, "dummy")
    if decode_dtype == "auto":
        decode_dtype = "bfloat16"
    return Setup(checkpoint, params.resolve(checkpoint.config), quantization, decode_dtype)


def amounts_of(count: Count) -> Amounts:
    return Amounts(
        count.total("matmul").flops,
        count.total("attention").flops,
        count.total("convolution").flops,
        float(count.total("elementwise").bytes),
        count.total().launches,
    )


def chunk_work(setup: Setup) -> ChunkWork:
    """Count the work of a chunk in the middle of a video. Allocates nothing."""
    config, params, geometry = setup.checkpoint.config, setup.params, setup.geometry
    branches = 2 if params.is_guided else 1
    model = config.transformer
    denoise, exchanged = Amounts(), 0.0
    for stage, steps in enumerate(params.stage_steps(1)):
        count = count_forward(config, geometry, stage, setup.quantization)
        denoise = denoise.plus(amounts_of(count).times(branches * steps))
        tokens = geometry.history_tokens + geometry.noise_tokens(stage, config.stages)
        row_bytes = 4 * model.num_layers * model.inner_dim * DTYPES["bfloat16"].itemsize
        exchanged += branches * steps * tokens * row_bytes
    dtype = DTYPES[setup.decode_dtype]
    decode = amounts_of(count_decode(setup.checkpoint.folder, geometry, dtype))
    if dtype.itemsize > 2:  # TF32 has half the rate
        decode = decode._replace(convolution=2 * decode.convolution)
    return ChunkWork(denoise, decode, exchanged)


def role_gigabytes(setup: Setup) -> dict[Role, dict[str, float]]:
    """The weights that each role needs, by the name of the part, in GB."""
    checkpoint = setup.checkpoint
    parts = build_parts(
        checkpoint.folder,
        checkpoint.config,
        DTYPES["bfloat16"],
        setup.quantization,
        decode_dtype=DTYPES[setup.decode_dtype],
    )
    sizes = {name: sum(weight_bytes(*part).values()) / 1e9 for name, part in parts.items()}
    return {role: {name: sizes[name] for name in PARTS_OF_ROLE[role]} for role in ROLES}


def weights_of(layout: Layout, weights: dict[Role, dict[str, float]]) -> float:
    """The weights on the GPU that has the most of them, in GB."""
    workers = STAGES_APART if layout.decoders else (ROLES,)
    return max(
        sum({name: size for role in roles for name, size in weights[role].items()}.values())
        for roles in workers
    )


def rows(machine: GpuSet, setup: Setup) -> list[Row]:
    """Predict every layout of the machine. Raises InvalidRequestError for FP8 where it is not."""
    if setup.quantization == "fp8" and not machine.gpu.has_fp8:
        raise InvalidRequestError(
            f"got quantization fp8 with {machine.gpu.title}, expected a GPU of compute capability "
            "8.9 or higher",
            param="quantization",
        )
    work, weights = chunk_work(setup), role_gigabytes(setup)
    heads = setup.checkpoint.config.transformer.num_attention_heads
    found = []
    for layout in layouts(machine.number, heads):
        rate = rate_of(layout, work, machine.gpu, fp8=setup.quantization is not None)
        size = weights_of(layout, weights)
        found.append(Row(rate, size, size <= WEIGHT_SHARE * machine.gpu.memory_gb))
    return found


def describe_plan(machine: GpuSet, setup: Setup) -> Iterator[str]:
    """Yield the lines of the table of `helios-serve plan`."""
    params, precision = setup.params, setup.quantization or "bfloat16"
    steps = ",".join(map(str, params.steps))
    size = f"{params.width}x{params.height}"
    yield (
        f"{machine.number} x {machine.gpu.title}: {setup.checkpoint.name}, {size}, steps {steps}, "
        f"{precision}, decoder in {setup.decode_dtype}"
    )
    yield f"Rates are predicted from counted work and {machine.source}; none was measured."
    yield ""
    cells = [HEADINGS, *(row_cells(row, setup) for row in rows(machine, setup))]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        yield "  ".join(
            text.ljust(width) for text, width in zip(line, widths, strict=True)
        ).rstrip()


HEADINGS = (
    "LAYOUT",
    "WEIGHTS/GPU",
    "FRAMES/S",
    "ONE SESSION",
    "REAL-TIME SESSIONS",
    "CPU CORES",
    "BOUND BY",
    "FLAGS",
)


def row_cells(row: Row, setup: Setup) -> tuple[str, ...]:
    """The cells of a row, each marked as counted or predicted."""
    rate, fps = row.rate, setup.params.fps
    pixels = setup.params.width * setup.params.height / TYPICAL_PIXELS
    cores = rate.total_fps / CHUNK_FRAMES * ENCODE_SECONDS * pixels
    weights = f"{row.weights_gb:.1f} GB counted"
    if not row.fits:
        return (rate.layout.name, f"{weights}, too much", *["-"] * 5, rate.layout.flags)
    return (
        rate.layout.name,
        weights,
        f"{rate.total_fps:.1f} predicted",
        f"{rate.session_fps:.1f} predicted",
        f"{rate.realtime_sessions(fps)} at {fps} fps predicted",
        f"{cores:.1f} predicted",
        rate.bound,
        rate.layout.flags,
    )
