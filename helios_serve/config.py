"""How a server is set up, and the defaults that every command shares."""

import math
from collections.abc import Iterable
from typing import Annotated, Literal

import msgspec

from helios_serve.errors import InvalidRequestError, NotAllowedError
from helios_serve.sampling_params import ServiceTier, VideoRequest

DEFAULT_MODEL = "nano"

Role = Literal["encode", "denoise", "decode"]
"""What a worker does: read prompts and references, take denoise steps, turn latents to frames."""
ROLES: tuple[Role, ...] = ("encode", "denoise", "decode")

Quantization = Literal["fp8"]
"""How the transformer's large linear layers are kept: fp8 is float8_e4m3fn with a scale a row."""

DecodeDtype = Literal["float32", "bfloat16"]
"""What the VAE decodes in; it encodes in float32 always."""

NANO_SIZE = (128, 64)
PUBLISHED_SIZE = (640, 384)


def default_size(model: str) -> tuple[int, int]:
    """(width, height) where none is given: what the published checkpoints are made for, or nano."""
    return NANO_SIZE if model.split("-")[0] == DEFAULT_MODEL else PUBLISHED_SIZE


Limit = Annotated[int, msgspec.Meta(ge=0)]
Weight = Annotated[float, msgspec.Meta(ge=1e-3, le=1e6)]
SizeName = Annotated[str, msgspec.Meta(pattern="^[1-9][0-9]*x[1-9][0-9]*$")]
"""WIDTHxHEIGHT in pixels."""


class TenantConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A tenant's share and limits; None is no limit of its own.

    `frames_per_day` counts what is asked for in a day of UTC, less what is not made of it.
    """

    weight: Weight = 1.0
    tiers: Annotated[tuple[ServiceTier, ...], msgspec.Meta(min_length=1)] | None = None
    max_sessions: Limit | None = None
    max_queued: Limit | None = None
    frames_per_day: Limit | None = None
    sizes: Annotated[tuple[SizeName, ...], msgspec.Meta(min_length=1)] | None = None

    def tier_like(self, usual: ServiceTier) -> ServiceTier:
        """The tier of a request that names none: the usual one, or the first that is allowed."""
        return usual if self.tiers is None or usual in self.tiers else self.tiers[0]

    def check(self, request: VideoRequest) -> None:
        """Raise NotAllowedError for a tier, InvalidRequestError for a size that is not allowed."""
        if self.tiers is not None and request.tier not in self.tiers:
            raise NotAllowedError(
                f"got service_tier {request.tier}, expected one that tenant {request.tenant} may "
                f"use: {', '.join(self.tiers)}",
                code="tier_not_allowed",
                param="service_tier",
            )
        width, height = request.shown_size or (request.params.width, request.params.height)
        size = f"{width}x{height}"
        if self.sizes is not None and size not in self.sizes:
            raise InvalidRequestError(
                f"got size {size}, expected one that tenant {request.tenant} may use: "
                f"{', '.join(self.sizes)}",
                param="size",
            )


class SchedulingConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Limits and policies of the scheduler.

    A batch holds at most `max_num_seqs` sessions and `max_num_batched_tokens` tokens; the default
    lets the small pyramid stages share a step and full-resolution steps at 384x640 go alone.
    `realtime_share` of a worker's rate may be promised to priority sessions; `batch_share` of
    what it does goes to the other tiers while they have work. `start_buffer` is the lead, in
    seconds, that a real-time player builds up before it starts. `tenant_defaults` are for tenants
    that are not among `tenants`.
    """

    max_num_batched_tokens: int = 12288
    max_num_seqs: int = 32
    max_queued: int = 1024
    realtime_share: float = 0.85
    batch_share: float = 0.15
    flex_weight: float = 0.25
    start_buffer: float = 1.0
    tenants: dict[str, TenantConfig] = {}
    tenant_defaults: TenantConfig = TenantConfig()

    def tenant(self, name: str) -> TenantConfig:
        return self.tenants.get(name, self.tenant_defaults)

    def weight(self, tenant: str, tier: ServiceTier) -> float:
        """A flow's share of service: its tenant's, of which flex counts a part."""
        weight = self.tenant(tenant).weight
        return weight * self.flex_weight if tier == "flex" else weight


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What the server does beside making videos.

    `retention` is how many seconds finished videos and files are kept, `max_disk` how many bytes
    they may take before new ones are refused; None is for ever, and what the disk has. A realtime
    session is kept for `session_grace` seconds when its client has gone.
    """

    retention: float | None = None
    max_disk: int | None = None
    session_grace: float = 30.0


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


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Which workers an engine keeps, and how long, in seconds, it waits for one of them.

    `step_deadline` is for one batch of steps, or one task beside them, `start_deadline` for loading
    a model.
    """

    workers: tuple[WorkerConfig, ...] = (WorkerConfig(),)
    step_deadline: float = 300.0
    start_deadline: float = 1800.0
    scheduling: SchedulingConfig = SchedulingConfig()
