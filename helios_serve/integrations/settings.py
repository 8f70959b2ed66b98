"""How our engine runs inside another server, as its users write it in that server's options."""

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from helios_serve.engine.launch import ExecutorKind
from helios_serve.errors import InvalidRequestError
from helios_serve.options.scheduling import SchedulingConfig
from helios_serve.options.workers import DecodeDtype, Quantization, WorkerGroup, groups_for
from helios_serve.size import SizeName


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The options of `helios-serve serve` that make sense inside another server.

    `workers` are written as for `--workers`. None for `executor` is Ray if there is an address,
    else threads of the server's own process.
    """

    workers: tuple[str, ...] = ("1",)
    executor: ExecutorKind | None = None
    ray_address: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    load_format: Literal["auto", "dummy"] = "auto"
    decode_dtype: DecodeDtype = "float32"
    compile_sizes: tuple[SizeName, ...] = ()
    quantization: Quantization | None = None
    offload: bool = False
    context_parallel: int = 1
    batch_invariant: bool = False
    history_blocks: int | None = None
    max_num_seqs: int = SchedulingConfig().max_num_seqs
    max_num_batched_tokens: int = SchedulingConfig().max_num_batched_tokens
    max_queued: int = SchedulingConfig().max_queued

    @classmethod
    def read(cls, options: Mapping[str, Any], where: str) -> "EngineSettings":
        """From plain values; `where` they stand is told in an InvalidRequestError."""
        try:
            return msgspec.convert(dict(options), cls, strict=False)
        except msgspec.ValidationError as error:
            expected = ", ".join(cls.__struct_fields__)
            raise InvalidRequestError(
                f"{where}: {error}; expected some of {expected}", param="options"
            ) from error

    @property
    def executor_kind(self) -> ExecutorKind:
        return self.executor or ("ray" if self.ray_address else "inline")

    @property
    def scheduling(self) -> SchedulingConfig:
        return SchedulingConfig(
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            max_queued=self.max_queued,
        )

    def worker_groups(self, model: str) -> tuple[WorkerGroup, ...]:
        """Who does the work; raises InvalidRequestError."""
        return groups_for(model, map(self._group, self.workers), self)

    def _group(self, text: str) -> WorkerGroup:
        try:
            return WorkerGroup.parse(text)
        except ValueError as error:
            raise InvalidRequestError(
                f"got workers {text!r}, expected N, N:ROLES or N:ROLES@KEY=VALUE,..., "
                "such as 2:denoise@gpus=0.5",
                param="workers",
            ) from error
