"""Scheduling options: the limits and shares of tenants, and the scheduler's policies."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from helios_serve.size import SizeName

DEFAULT_TENANT = "default"
ServiceTier = Literal["priority", "default", "flex"]
"""A request's tier: priority has real-time deadlines, default shares the remaining time fairly by
tenant, and flex does so with a smaller weight."""
Limit = Annotated[int, Meta(ge=0)]
Weight = Annotated[float, Meta(ge=1e-3, le=1e6)]


class TenantConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A tenant's share and limits. None means no limit for this tenant.

    - `weight`: the tenant's share of the workers' time, relative to other tenants.
    - `tiers`: the tiers that its requests may use.
    - `max_sessions`: unfinished videos, including those that wait for a worker.
    - `max_queued`: videos that wait for a worker.
    - `frames_per_day`: frames requested in a UTC day, less those of failed or cancelled videos that
      were not generated.
    - `max_file_bytes`: bytes of its files: those that it uploads, and the results of its batches.
    - `sizes`: the video sizes that it may request.
    - `loras`: names of the LoRA adapters that it may use; an empty list allows none.
    """

    weight: Weight = 1.0
    tiers: Annotated[tuple[ServiceTier, ...], Meta(min_length=1)] | None = None
    max_sessions: Limit | None = None
    max_queued: Limit | None = None
    frames_per_day: Limit | None = None
    max_file_bytes: Limit | None = None
    sizes: Annotated[tuple[SizeName, ...], Meta(min_length=1)] | None = None
    loras: tuple[str, ...] | None = None

    def tier_like(self, usual: ServiceTier) -> ServiceTier:
        """Return the default tier of a request: `usual` if allowed, else the first allowed tier."""
        return usual if self.tiers is None or usual in self.tiers else self.tiers[0]


class BatchLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of a batch and of the queue.

    With the defaults, small pyramid stages of several sessions share a step, while full-resolution
    steps at 640x384 run alone.
    """

    max_num_batched_tokens: Annotated[
        int,
        Meta(ge=1, description="Tokens in one denoise step.", extra={"metavar": "N"}),
    ] = 12288
    max_num_seqs: Annotated[
        int,
        Meta(ge=1, description="Sessions in one denoise step.", extra={"metavar": "N"}),
    ] = 32
    max_queued: Annotated[
        int,
        Meta(
            ge=0,
            description="Videos that may wait for a worker; more are refused.",
            extra={"metavar": "N"},
        ),
    ] = 1024

    def sessions_of(self, tokens: int) -> int:
        """Return how many sessions fit one denoise step if each has `tokens`; at least one does."""
        return max(1, min(self.max_num_seqs, self.max_num_batched_tokens // max(1, tokens)))


class SchedulingConfig(BatchLimits, frozen=True, kw_only=True):
    """Limits and policies of the scheduler. `tenant_defaults` applies to all other tenants."""

    realtime_share: Annotated[
        float,
        Meta(
            gt=0, le=1, description="Share of a worker's rate that priority sessions may reserve."
        ),
    ] = 0.85
    batch_share: Annotated[
        float,
        Meta(ge=0, lt=1, description="Share of a worker's steps kept for the other tiers."),
    ] = 0.15
    flex_weight: Annotated[
        float, Meta(gt=0, le=1, description="Weight of flex against default.")
    ] = 0.25
    start_buffer: Annotated[
        float,
        Meta(ge=0, description="Seconds that a real-time player buffers before it starts."),
    ] = 1.0
    tenants: dict[str, TenantConfig] = {}
    tenant_defaults: TenantConfig = TenantConfig()

    def tenant(self, name: str) -> TenantConfig:
        """Return the configuration of a tenant, or the defaults if it has none."""
        return self.tenants.get(name, self.tenant_defaults)

    def weight(self, tenant: str, tier: ServiceTier) -> float:
        """Return the fair-queueing weight of a tenant's requests in `tier`."""
        weight = self.tenant(tenant).weight
        return weight * self.flex_weight if tier == "flex" else weight
