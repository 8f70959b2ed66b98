"""Scheduling options: limits and shares of tenants, and policies of the scheduler."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from helios_serve.size import SizeName

DEFAULT_TENANT = "default"
ServiceTier = Literal["priority", "default", "flex"]
"""priority is real-time, flex takes what the others leave."""
Limit = Annotated[int, Meta(ge=0)]
Weight = Annotated[float, Meta(ge=1e-3, le=1e6)]


class TenantConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A tenant's share and limits; None is no limit of its own.

    `frames_per_day` counts what is asked for in a day of UTC, less what is not made of it.
    """

    weight: Weight = 1.0
    tiers: Annotated[tuple[ServiceTier, ...], Meta(min_length=1)] | None = None
    max_sessions: Limit | None = None
    max_queued: Limit | None = None
    frames_per_day: Limit | None = None
    sizes: Annotated[tuple[SizeName, ...], Meta(min_length=1)] | None = None

    def tier_like(self, usual: ServiceTier) -> ServiceTier:
        """The tier of a request that names none: the usual one, or the first that is allowed."""
        return usual if self.tiers is None or usual in self.tiers else self.tiers[0]


class BatchLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How much runs in one step, and how much may wait.

    The default batch lets the small pyramid stages of several sessions share a step, while
    full-resolution steps at 640x384 run alone.
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


class SchedulingConfig(BatchLimits, frozen=True, kw_only=True):
    """Limits and policies of the scheduler; `tenant_defaults` are for tenants not in `tenants`."""

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
        return self.tenants.get(name, self.tenant_defaults)

    def weight(self, tenant: str, tier: ServiceTier) -> float:
        """A flow's share of service: its tenant's, of which flex counts a part."""
        weight = self.tenant(tenant).weight
        return weight * self.flex_weight if tier == "flex" else weight
