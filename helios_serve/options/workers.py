"""Worker options: the model that a worker runs, its device, precision and roles."""

import math
from collections.abc import Iterable
from typing import Literal

import msgspec

from helios_serve.errors import InvalidRequestError
from helios_serve.size import SizeName

DEFAULT_MODEL = "nano"
Role = Literal["encode", "denoise", "decode"]
"""What a worker does: encode prompts and references, run denoise steps, or decode latents."""
ROLES: tuple[Role, ...] = ("encode", "denoise", "decode")
Quantization = Literal["fp8"]
"""Quantization of the transformer's large linear layers. fp8: float8_e4m3fn, a scale per row."""
DecodeDtype = Literal["float32", "bfloat16"]
"""Dtype of the VAE's decoder. Its encoder always runs in float32."""


class Resources(msgspec.Struct, frozen=True, kw_only=True):
    """Resources that a worker reserves on a Ray cluster.

    `num_gpus` may be a fraction, so that workers share a GPU. None means one per rank of the
    worker, or none if it runs on the CPU or the cluster has no GPUs. `labels` restricts the worker
    to nodes with these labels.
    """

    num_cpus: float = 1.0
    num_gpus: float | None = None
    labels: dict[str, str] = {}


class WorkerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Configuration of one worker.

    - `model`: a local folder, a Hugging Face hub id, or a built-in model such as `nano`.
    - `device`: a torch device name, or `auto` for the first accelerator, else the CPU.
    - `dtype`: `auto`, `bfloat16` or `float32`; `auto` is bfloat16 on accelerators.
    - `load_format`: `dummy` fills the model with random weights.
    - `decode_dtype`, `quantization`, `offload`, `context_parallel`: see docs/memory.md.
    - `compile_sizes`: sizes for which the VAE's decoder is compiled; see docs/kernels.md.
    - `history_blocks`: blocks in the history pool; None sizes it by the free memory.
    - `batch_invariant`: run each pack segment alone, so that results do not depend on the batch.
    """

    model: str = DEFAULT_MODEL
    device: str = "auto"
    dtype: str = "auto"
    load_format: Literal["auto", "dummy"] = "auto"
    decode_dtype: DecodeDtype = "float32"
    compile_sizes: tuple[SizeName, ...] = ()
    quantization: Quantization | None = None
    offload: bool = False
    context_parallel: int = 1
    roles: tuple[Role, ...] = ROLES
    history_blocks: int | None = None
    batch_invariant: bool = False
    resources: Resources = Resources()

    @property
    def ranks(self) -> int:
        """The number of processes of the worker, one per device. Only denoising is parallel."""
        return self.context_parallel if "denoise" in self.roles else 1


SHARED_OPTIONS = (
    "device",
    "dtype",
    "load_format",
    "decode_dtype",
    "compile_sizes",
    "quantization",
    "offload",
    "context_parallel",
    "batch_invariant",
    "history_blocks",
)
"""Fields of WorkerConfig that are set once for all workers of a model."""


class WorkerGroup(msgspec.Struct, frozen=True):
    """`count` workers with the same configuration."""

    config: WorkerConfig
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> "WorkerGroup":
        """Parse N[:ROLES][@KEY=VALUE,...]; raises ValueError for any other text.

        ROLES are joined by `+` and default to all roles. The keys `cpus` and `gpus` are amounts;
        any other key is a label of the nodes to run on.
        """
        head, has_needs, needs = text.partition("@")
        number, has_names, names = head.partition(":")
        if (has_names and not names) or (has_needs and not needs):
            raise ValueError(text)
        count = int(number)
        chosen = names.split("+") if names else list(ROLES)
        if count < 1 or not set(chosen) <= set(ROLES):
            raise ValueError(text)
        roles: tuple[Role, ...] = tuple(role for role in ROLES if role in chosen)
        return cls(WorkerConfig(roles=roles, resources=_resources(needs)), count)


def groups_for(
    model: str, groups: Iterable[WorkerGroup], options: object
) -> tuple[WorkerGroup, ...]:
    """Return `groups` with `model` and the attributes of `options` named in `SHARED_OPTIONS` set.

    Raises InvalidRequestError if no worker has one of the roles.
    """
    chosen = tuple(groups)
    check_roles(chosen)
    shared = {name: getattr(options, name) for name in SHARED_OPTIONS}
    return tuple(
        WorkerGroup(msgspec.structs.replace(group.config, model=model, **shared), group.count)
        for group in chosen
    )


def check_roles(groups: Iterable[WorkerGroup]) -> None:
    """Raise InvalidRequestError unless every role is taken by at least one worker."""
    covered = {role for group in groups for role in group.config.roles}
    if idle := [role for role in ROLES if role not in covered]:
        raise InvalidRequestError(
            f"got workers of which none is to {' or '.join(idle)}, expected at least one",
            param="workers",
        )


def _resources(text: str) -> Resources:
    given = [_pair(part) for part in text.split(",")] if text else []
    pairs = dict(given)
    if len(pairs) < len(given):
        raise ValueError(text)
    gpus = pairs.pop("gpus", None)
    return Resources(
        num_cpus=_amount(pairs.pop("cpus", "1")),
        num_gpus=None if gpus is None else _amount(gpus),
        labels=pairs,
    )


def _amount(text: str) -> float:
    amount = float(text)
    if not 0 <= amount < math.inf:
        raise ValueError(text)
    return amount


def _pair(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not (key and separator and value):
        raise ValueError(text)
    return key, value
