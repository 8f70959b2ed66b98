"""Worker options: which model a worker runs, how, on what, and for which work."""

import math
from collections.abc import Iterable
from typing import Literal

import msgspec

from helios_serve.errors import InvalidRequestError
from helios_serve.size import SizeName

DEFAULT_MODEL = "nano"
Role = Literal["encode", "denoise", "decode"]
"""What a worker does: read prompts and references, take denoise steps, turn latents to frames."""
ROLES: tuple[Role, ...] = ("encode", "denoise", "decode")
Quantization = Literal["fp8"]
"""How the transformer's large linear layers are kept: fp8 is float8_e4m3fn with a scale a row."""
DecodeDtype = Literal["float32", "bfloat16"]
"""What the VAE decodes in; it encodes in float32 always."""


class Resources(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker takes of a cluster.

    None for `num_gpus` is one if there are any, or none on the CPU. It may be a fraction, so that
    several workers share a GPU; `labels` are those of the nodes that it may run on.
    """

    num_cpus: float = 1.0
    num_gpus: float | None = None
    labels: dict[str, str] = {}


class WorkerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker runs. None for `history_blocks` sizes the pool by the memory left free.

    See docs/memory.md for `decode_dtype`, `quantization`, `offload` and `context_parallel`, and
    docs/kernels.md for `compile_sizes`.
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
        """Processes, each with a device, that this worker is made of: only steps are shared."""
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
"""Fields of WorkerConfig that are said once for all workers of a model."""


class WorkerGroup(msgspec.Struct, frozen=True):
    """`count` workers of one kind."""

    config: WorkerConfig
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> "WorkerGroup":
        """From N[:ROLES][@KEY=VALUE,...], as users write it; raises ValueError.

        Roles are joined by +, all if there are none. The keys cpus and gpus are amounts, any other
        is a label of the nodes to run on.
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
    """`groups` of workers that run `model`, as attributes of `options` by their names say.

    Raises InvalidRequestError where nobody would do some of the work.
    """
    chosen = tuple(groups)
    check_roles(chosen)
    shared = {name: getattr(options, name) for name in SHARED_OPTIONS}
    return tuple(
        WorkerGroup(msgspec.structs.replace(group.config, model=model, **shared), group.count)
        for group in chosen
    )


def check_roles(groups: Iterable[WorkerGroup]) -> None:
    """Raise InvalidRequestError if nobody would do some of the work."""
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
