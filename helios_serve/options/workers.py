"""Worker options: the model that a worker runs, its device, precision and roles."""

import math
from collections.abc import Iterable
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from helios_serve.errors import InvalidRequestError
from helios_serve.size import SizeName

DEFAULT_MODEL = "nano"
Role = Literal["encode", "denoise", "decode"]
"""What a worker does: encode prompts and references, run denoise steps, or decode latents."""
ROLES: tuple[Role, ...] = ("encode", "denoise", "decode")
Quantization = Literal["fp8"]
"""Quantization of the transformer's large linear layers. fp8: float8_e4m3fn, a scale per row."""
DecodeDtype = Literal["float32", "bfloat16"]
"""What the VAE decodes in; it encodes in float32 always."""
ExecutorKind = Literal["inline", "local", "ray"]
"""Where workers run: threads of this process, processes of this machine, or Ray actors."""
LoadFormat = Literal["auto", "dummy"]
"""Whether weights are read from the checkpoint or drawn at random."""


class Resources(msgspec.Struct, frozen=True, kw_only=True):
    """Resources that a worker reserves on a Ray cluster.

    `num_gpus` may be a fraction, so that workers share a GPU. None means one per rank of the
    worker, or none if it runs on the CPU or the cluster has no GPUs. `labels` restricts the worker
    to nodes with these labels.
    """

    num_cpus: float = 1.0
    num_gpus: float | None = None
    labels: dict[str, str] = {}


class WorkerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a model is run, the same for all of its workers.

    Commands, the Python API and the settings inside other engines take these by name; flags and
    docs/options.md are made from them.
    """

    device: Annotated[
        str,
        Meta(
            description="auto, cpu, cuda (each worker takes the next one), cuda:1 and so on.",
        ),
    ] = "auto"
    dtype: Annotated[str, Meta(description="auto, bfloat16 or float32.")] = "auto"
    load_format: Annotated[
        LoadFormat,
        Meta(description="dummy: random weights, to measure speed without a download."),
    ] = "auto"
    decode_dtype: Annotated[
        DecodeDtype,
        Meta(
            description="Precision of the VAE decoder; bfloat16 takes half the memory and is less "
            "exact.",
        ),
    ] = "float32"
    compile_sizes: Annotated[
        tuple[SizeName, ...],
        Meta(
            description="Sizes for which the VAE decoder is compiled at the start, a minute or so "
            "each.",
            extra={"metavar": "WIDTHxHEIGHT,..."},
        ),
    ] = ()
    quantization: Annotated[
        Quantization | None,
        Meta(
            description="fp8: the transformer's large linear layers in half the memory, less "
            "exact.",
        ),
    ] = None
    offload: Annotated[
        bool,
        Meta(
            description="Keep weights on the host and copy them to the device layer by layer: "
            "3.3 GB at a time of 14B, slowly.",
        ),
    ] = False
    context_parallel: Annotated[
        int,
        Meta(
            ge=1,
            description="Devices that share each denoise step of a worker, one process each.",
            extra={"metavar": "N"},
        ),
    ] = 1
    batch_invariant: Annotated[
        bool,
        Meta(description="Run segments one by one, so that results repeat bitwise."),
    ] = False
    history_blocks: Annotated[
        Annotated[int, Meta(ge=2)] | None,
        Meta(
            description="Blocks of a denoising worker's history pool.",
            extra={"metavar": "N", "default": "as many as free memory allows"},
        ),
    ] = None


DEFAULT_OPTIONS = WorkerOptions()


class WorkerConfig(WorkerOptions, frozen=True, kw_only=True):
    """What one worker runs: its model, its share of the work and what it takes of a cluster.

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
    roles: tuple[Role, ...] = ROLES
    resources: Resources = Resources()

    @property
    def ranks(self) -> int:
        """The number of processes of the worker, one per device. Only denoising is parallel."""
        return self.context_parallel if "denoise" in self.roles else 1


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
    model: str, groups: Iterable[WorkerGroup], options: WorkerOptions
) -> tuple[WorkerGroup, ...]:
    """`groups` of workers that run `model` with `options`.

    Raises InvalidRequestError if no worker would do some of the work.
    """
    chosen = tuple(groups)
    check_roles(chosen)
    return tuple(
        WorkerGroup(worker_config(model, options, group.config), group.count) for group in chosen
    )


def worker_config(model: str, options: WorkerOptions, like: WorkerConfig) -> WorkerConfig:
    """A worker with the roles and resources of `like` that runs `model` with `options`."""
    shared = {name: getattr(options, name) for name in WorkerOptions.__struct_fields__}
    return WorkerConfig(model=model, roles=like.roles, resources=like.resources, **shared)


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
