"""Scheduling options: the limits and shares of tenants, and the scheduler's policies."""

from typing import Annotated, Literal

import msgspec

from helios_serve.size import SizeName

DEFAULT_TENANT = "default"
ServiceTier = Literal["priority", "default", "flex"]
"""A request's tier: priority has real-time deadlines, default shares the remaining time fairly by
tenant, and flex does so with a smaller weight."""
Limit = Annotated[int, msgspec.Meta(ge=0)]
Weight = Annotated[float, msgspec.Meta(ge=1e-3, le=1e6)]


class TenantConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A tenant's share and limits. None means no limit for this tenant.

    - `weight`: the tenant's share of the workers' time, relative to other tenants.
    - `tiers`: the tiers that its requests may use.
    - `max_sessions`: unfinished videos, including those that wait for a worker.
    - `max_queued`: videos that wait for a worker.
    - `frames_per_day`: frames requested in a UTC day, less those of failed or cancelled videos that
      were not generated.
    - `sizes`: the video sizes that it may request.
    """

    weight: Weight = 1.0
    tiers: Annotated[tuple[ServiceTier, ...], msgspec.Meta(min_length=1)] | None = None
    max_sessions: Limit | None = None
    max_queued: Limit | None = None
    frames_per_day: Limit | None = None
    sizes: Annotated[tuple[SizeName, ...], msgspec.Meta(min_length=1)] | None = None

    def tier_like(self, usual: ServiceTier) -> ServiceTier:
        """Return the default tier of a request: `usual` if allowed, else the first allowed tier."""
        return usual if self.tiers is None or usual in self.tiers else self.tiers[0]


class SchedulingConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Limits and policies of the scheduler.

    - `max_num_batched_tokens`, `max_num_seqs`: the most tokens and sessions in one batch. By
      default small pyramid stages share a step, and a full-resolution step at 640x384 runs alone.
    - `max_queued`: the most sessions that wait for a worker.
    - `realtime_share`: the share of a worker's rate that may be promised to priority sessions.
    - `batch_share`: the share of a worker's time that the other tiers get while they have work.
    - `flex_weight`: the weight of the flex tier relative to its tenant's other requests.
    - `start_buffer`: seconds of video that a real-time player buffers before playback starts.
    - `tenants`: tenants by name; `tenant_defaults` applies to all others.
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
        """Return the configuration of a tenant, or the defaults if it has none."""
        return self.tenants.get(name, self.tenant_defaults)

    def weight(self, tenant: str, tier: ServiceTier) -> float:
        """Return the fair-queueing weight of a tenant's requests in `tier`."""
        weight = self.tenant(tenant).weight
        return weight * self.flex_weight if tier == "flex" else weight
