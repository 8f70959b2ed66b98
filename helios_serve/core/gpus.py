"""GPUs by name, with the rates that times are predicted from. No number here was measured by us."""

from typing import NamedTuple


class Gpu(NamedTuple):
    """A GPU: memory in GB, and rates in FLOP/s and bytes a second.

    `matmul` is that of large products in bfloat16 and `attention` that of the fastest exact
    attention, both as far as published measurements reach; `copy` reads and writes memory, and
    `link` is what one GPU sends to the others of its machine.
    """

    title: str
    memory_gb: float
    matmul: float
    attention: float
    copy: float
    link: float
    fp8_speedup: float = 1.0
    """How much faster than bfloat16 products in FP8 are; 1 where there is no FP8."""

    @property
    def has_fp8(self) -> bool:
        return self.fp8_speedup > 1


GPUS = {
    "a100": Gpu("A100 80GB SXM", 80, 255e12, 190e12, 1.75e12, 0.25e12),
    "h100": Gpu("H100 80GB SXM", 80, 798e12, 620e12, 3.0e12, 0.38e12, 1.7),
    "h200": Gpu("H200 141GB SXM", 141, 798e12, 620e12, 4.1e12, 0.38e12, 1.7),
    "b200": Gpu("B200 180GB SXM", 180, 1600e12, 1100e12, 6.9e12, 0.76e12, 1.7),
}
"""SXM boards with NVLink. Data sheets give peaks (bfloat16: 312, 989, 989 and 2250 TFLOP/s; memory:
2.0, 3.35, 4.8 and 8 TB/s; NVLink in one direction: 0.3, 0.45, 0.45 and 0.9 TB/s); published
measurements reach 70 to 90% of them."""
