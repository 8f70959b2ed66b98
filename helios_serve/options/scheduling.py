"""Scheduling options: limits and shares of tenants, and policies of the scheduler."""

from typing import Annotated, Literal

import msgspec

from helios_serve.size import SizeName

DEFAULT_TENANT = "default"
ServiceTier = Literal["priority", "default", "flex"]
"""priority is real-time, flex takes what the others leave."""
Limit = Annotated[int, msgspec.Meta(ge=0)]
Weight = Annotated[float, msgspec.Meta(ge=1e-3, le=1e6)]


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
