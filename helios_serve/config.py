"""How a server is set up, and the defaults that every command shares."""

from typing import Literal

import msgspec

from helios_serve.sampling_params import ServiceTier

DEFAULT_MODEL = "nano"

Role = Literal["encode", "denoise", "decode"]
"""What a worker does: read prompts and references, take denoise steps, turn latents to frames."""
ROLES: tuple[Role, ...] = ("encode", "denoise", "decode")

NANO_SIZE = (128, 64)
PUBLISHED_SIZE = (640, 384)


def default_size(model: str) -> tuple[int, int]:
    """(width, height) where none is given: what the published checkpoints are made for, or nano."""
    return NANO_SIZE if model.split("-")[0] == DEFAULT_MODEL else PUBLISHED_SIZE


class TenantConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A tenant's share and limits; None is no limit of its own."""

    weight: float = 1.0
    max_sessions: int | None = None
    max_queued: int | None = None


class SchedulingConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Limits and policies of the scheduler.

    A batch holds at most `max_num_seqs` sessions and `max_num_batched_tokens` tokens; the default
    lets the small pyramid stages share a step and full-resolution steps at 384x640 go alone.
    `realtime_share` of a worker's rate may be promised to priority sessions; `batch_share` of
    what it does goes to the other tiers while they have work. `start_buffer` is the lead, in
    seconds, that a real-time player builds up before it starts.
    """

    max_num_batched_tokens: int = 12288
    max_num_seqs: int = 32
    max_queued: int = 1024
    realtime_share: float = 0.85
    batch_share: float = 0.15
    flex_weight: float = 0.25
    start_buffer: float = 1.0
    tenants: dict[str, TenantConfig] = {}

    def tenant(self, name: str) -> TenantConfig:
        return self.tenants.get(name, TenantConfig())

    def weight(self, tenant: str, tier: ServiceTier) -> float:
        """A flow's share of service: its tenant's, of which flex counts a part."""
        weight = self.tenant(tenant).weight
        return weight * self.flex_weight if tier == "flex" else weight


class Resources(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker takes of a cluster.

    None for `num_gpus` is one if there are any, or none on the CPU. It may be a fraction, so that
    several workers share a GPU; `labels` are those of the nodes that it may run on.
    """

    num_cpus: float = 1.0
    num_gpus: float | None = None
    labels: dict[str, str] = {}


class WorkerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker runs. None for `history_blocks` sizes the pool by the memory left free."""

    model: str = DEFAULT_MODEL
    device: str = "auto"
    dtype: str = "auto"
    load_format: Literal["auto", "dummy"] = "auto"
    roles: tuple[Role, ...] = ROLES
    history_blocks: int | None = None
    batch_invariant: bool = False
    resources: Resources = Resources()


class WorkerGroup(msgspec.Struct, frozen=True):
    """`count` workers of one kind."""

    config: WorkerConfig
    count: int = 1


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Which workers an engine keeps, and how long, in seconds, it waits for one of them.

    `step_deadline` is for one batch of steps, or one task beside them, `start_deadline` for loading
    a model.
    """

    workers: tuple[WorkerConfig, ...] = (WorkerConfig(),)
    step_deadline: float = 300.0
    start_deadline: float = 1800.0
    scheduling: SchedulingConfig = SchedulingConfig()
