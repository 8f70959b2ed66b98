"""Options of `helios-serve plan`."""

from typing import Annotated

import msgspec
from msgspec import Meta

from helios_serve.options.workers import DecodeDtype


class PlanOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Which GPUs to plan for."""

    gpus: Annotated[
        str,
        Meta(
            description="Number and kind of the GPUs of one machine: a100, h100, h200 or b200.",
            extra={"metavar": "COUNTxNAME"},
        ),
    ] = "1xh100"
    rates: Annotated[
        str | None,
        Meta(
            description="Result of `benchmarks/micro/rates.py` on such a GPU, in place of "
            "published rates.",
            extra={"metavar": "FILE.json"},
        ),
    ] = None
    decode_dtype: Annotated[DecodeDtype, Meta(description="Precision of the VAE decoder.")] = (
        "bfloat16"
    )
