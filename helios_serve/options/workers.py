"""Worker options: the model that a worker runs, its device, precision and roles."""

import math
from collections.abc import Iterable
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from helios_serve.errors import InvalidRequestError
from helios_serve.size import SizeName

DEFAULT_MODEL = "nano"
RANDOM_MODEL = "nano-random"
"""The built-in model whose weights are random, for tests: its videos show noise."""
Role = Literal["encode", "denoise", "decode"]
"""What a worker does: encode prompts and references, run denoise steps, or decode latents."""
ROLES: tuple[Role, ...] = ("encode", "denoise", "decode")
CHUNKS_WAITING = 1
"""Chunks of a worker that may wait to be encoded as segments. While one does, the next one is
rendered; then that waits too. So four tasks of a worker are in flight at most: one is encoded, one
waits, one is rendered, and one more was sent as soon as that one's frames were there."""
Quantization = Literal["fp8"]
"""Quantization of the transformer's large linear layers. fp8: float8_e4m3fn, a scale per row."""
DecodeDtype = Literal["auto", "bfloat16", "float32"]
"""Dtype of the VAE's decoder. auto: bfloat16, or float32 on the CPU. Its encoder always runs in
float32."""
ExecutorKind = Literal["inline", "local", "ray"]
"""How workers run: as threads of this process, as child processes, or as Ray actors."""
Dtype = Literal["auto", "bfloat16", "float32"]
"""Dtype of the transformer and the text encoder. auto: bfloat16, or float32 on the CPU."""
AttentionBackend = Literal["auto", "flash3", "cudnn", "varlen", "flash2", "triton", "cpu", "sdpa"]
"""Self-attention of the transformer. auto: the fastest that is installed for the device."""
LoadFormat = Literal["auto", "dummy"]
"""Whether weights are loaded from the checkpoint (auto) or random (dummy)."""


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
    """Options for running a model, shared by all of its workers.

    The command line, the Python API and the integrations accept the fields by name. Flags and
    docs/options.md are generated from their descriptions. docs/memory.md explains `decode_dtype`,
    `quantization`, `offload` and `context_parallel`, and docs/kernels.md `attention_backend`,
    `continuous_decode`, `compile_sizes` and `warm_up_sizes`.
    """

    device: Annotated[
        str,
        Meta(
            description="auto, cpu, cuda (each worker takes the next one), cuda:1 and so on.",
        ),
    ] = "auto"
    dtype: Annotated[
        Dtype,
        Meta(
            description="Precision of the transformer and the text encoder; auto: bfloat16, or "
            "float32 on the CPU."
        ),
    ] = "auto"
    load_format: Annotated[
        LoadFormat,
        Meta(description="dummy: random weights, to measure speed without a download."),
    ] = "auto"
    decode_dtype: Annotated[
        DecodeDtype,
        Meta(
            description="Precision of the VAE decoder; auto: bfloat16, or float32 on the CPU. "
            "float32 is more exact.",
        ),
    ] = "auto"
    continuous_decode: Annotated[
        bool,
        Meta(
            description="Decode a chunk as the continuation of the one before, which makes the "
            "seams between chunks smaller. Other pixels than the reference's, and 1.2 GB of memory "
            "for each session at 640x384 in bfloat16."
        ),
    ] = False
    compile_sizes: Annotated[
        tuple[SizeName, ...],
        Meta(
            description="Sizes for which the VAE decoder is compiled at the start, a minute or so "
            "each.",
            extra={"metavar": "WIDTHxHEIGHT,..."},
        ),
    ] = ()
    warm_up_sizes: Annotated[
        tuple[SizeName, ...],
        Meta(
            description="Sizes of which a worker makes a chunk when it starts, so that the first "
            "video of the size is as fast as later ones.",
            extra={"metavar": "WIDTHxHEIGHT,..."},
        ),
    ] = ()
    attention_backend: Annotated[
        AttentionBackend,
        Meta(
            description="Self-attention of the transformer; auto: the fastest exact one that is "
            "installed for the device."
        ),
    ] = "auto"
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
        Meta(
            description="Run segments one by one, so that results repeat bitwise; on a CPU, with "
            "the same number of threads (`OMP_NUM_THREADS`)."
        ),
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
    """Configuration of one worker.

    - `model`: a local folder, a Hugging Face hub id, or a built-in model such as `nano`.
    - `roles`: the kinds of work that it does.
    - `resources`: what it reserves on a Ray cluster.
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
    """Return `groups` with their workers set to run `model` with `options`.

    Raises InvalidRequestError if no worker has one of the roles.
    """
    chosen = tuple(groups)
    check_roles(chosen)
    return tuple(
        WorkerGroup(worker_config(model, options, group.config), group.count) for group in chosen
    )


def worker_config(model: str, options: WorkerOptions, like: WorkerConfig) -> WorkerConfig:
    """Return the configuration of a worker with the roles and resources of `like`."""
    shared = {name: getattr(options, name) for name in WorkerOptions.__struct_fields__}
    return WorkerConfig(model=model, roles=like.roles, resources=like.resources, **shared)


def check_roles(groups: Iterable[WorkerGroup]) -> None:
    """Raise InvalidRequestError unless every role is taken by at least one worker."""
    covered = {role for group in groups for role in group.config.roles}
    if idle := [role for role in ROLES if role not in covered]:
        raise InvalidRequestError(
            f"got no worker to {' or '.join(idle)}, expected at least one",
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
