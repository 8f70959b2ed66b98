"""Devices that were not measured: their costs follow from datasheets, and are marked "roofline"."""

from collections.abc import Mapping
from typing import NamedTuple

from helios_serve.benchmarks.simulator.costs import DeviceCosts, PlanCosts, TaskCosts
from helios_serve.errors import InvalidRequestError
from helios_serve.model_config import BLOCK_ROWS, PATCH_DIM, HeliosConfig
from helios_serve.options.fields import did_you_mean


class Datasheet(NamedTuple):
    """TFLOP/s of dense bfloat16 products, TB/s and GB of the memory of one device."""

    tflops: float
    bandwidth: float
    memory: float


DATASHEETS: Mapping[str, Datasheet] = {
    "h100": Datasheet(989.0, 3.35, 80.0),
    "h200": Datasheet(989.0, 4.8, 141.0),
    "b200": Datasheet(2250.0, 8.0, 180.0),
}
"""NVIDIA's datasheets of the SXM modules, without sparsity."""
LINEAR_SHARE, ATTENTION_SHARE, BANDWIDTH_SHARE = 0.8, 0.6, 0.9
"""Shares of the datasheet that kernels are taken to reach."""
LAUNCHES, LAUNCH_SECONDS = 15, 5e-6
"""Kernels of one layer, and the seconds from one to the next where they are short."""
DECODE_BYTES = 71_000.0
"""Memory traffic of the VAE's decoder for one pixel of a frame, in bfloat16: 577 GB for 33 frames
of 640x384. It is bound by memory, not by its 8.5 MFLOP."""
ENCODE_FLOPS, ENCODE_SHARE = 5.05e6, 0.3
"""FLOPs of the VAE's encoder for one pixel, and the share of the datasheet that it is taken to
reach. Prompts count as pixels."""
TASK_SECONDS = 0.01
"""Of a task besides its kernels: copies, and the MP4 segment."""
BYTES = 2
POOL_SHARE, TEXT_SHARE, MOST_POOL, MOST_TEXT = 0.1, 0.1, 4 << 30, 16 << 30
"""What a worker takes of the memory that its weights leave, as in
`model_executor/worker/worker.py`."""
WEIGHTS = 40e9
"""Bytes of the 14B transformer, the text encoder and the VAE."""
START_SECONDS = 60.0


def device_costs(name: str, config: HeliosConfig) -> DeviceCosts:
    """Return the costs of a device in the table. Raises InvalidRequestError for another name."""
    sheet = DATASHEETS.get(name)
    if sheet is None:
        raise InvalidRequestError(
            f"got device {name!r}, expected one of: {', '.join(DATASHEETS)}"
            f"{did_you_mean(name, DATASHEETS)}; or --costs with a file of `simulate fit`",
            param="device",
        )
    flops, model = 1e12 * sheet.tflops, config.transformer
    bandwidth = 1e12 * BANDWIDTH_SHARE * sheet.bandwidth
    free = max(0.0, 1e9 * sheet.memory - WEIGHTS)
    row = 2 * model.num_layers * model.inner_dim * BYTES
    return DeviceCosts(
        name=name,
        source="roofline",
        origin=f"datasheet ({sheet.tflops:g} TFLOP/s, {sheet.bandwidth:g} TB/s) times "
        f"{LINEAR_SHARE:g} for products, {ATTENTION_SHARE:g} for attention and "
        f"{BANDWIDTH_SHARE:g} for memory: nothing was measured",
        plan=PlanCosts(
            overhead=LAUNCHES * model.num_layers * LAUNCH_SECONDS,
            linear=1 / (LINEAR_SHARE * flops),
            attention=1 / (ATTENTION_SHARE * flops),
        ),
        encode=TaskCosts(overhead=TASK_SECONDS, pixel=ENCODE_FLOPS / (ENCODE_SHARE * flops)),
        decode=TaskCosts(overhead=TASK_SECONDS, pixel=DECODE_BYTES / bandwidth),
        sharing=1.0,
        start_seconds=START_SECONDS,
        num_blocks=int(min(POOL_SHARE * free, MOST_POOL)) // (BLOCK_ROWS * PATCH_DIM * BYTES),
        text_rows=int(min(TEXT_SHARE * free, MOST_TEXT)) // row,
    )
