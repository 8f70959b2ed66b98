"""Tenants of a load: their keys, shares, weights, tiers and rates."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from helios_serve.benchmarks.load.json_file import read_json
from helios_serve.benchmarks.load.request import DEFAULT_TENANT
from helios_serve.errors import InvalidRequestError
from helios_serve.options.benchmarks import Tier

Positive = Annotated[float, Meta(gt=0)]


class LoadTenant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A tenant that starts sessions.

    - `key`: its API key.
    - `share`: its part of the sessions, relative to the other shares.
    - `weight`: its weight in the server's fair queueing, by which fairness is judged; default: its
      share.
    - `request_rate`: sessions per second of its own, instead of a share of the common ones.
    - `start`, `stop`: seconds between which those come, such as of a flood; default: all the time.
    """

    name: str
    key: str | None = None
    share: Positive = 1.0
    weight: Positive | None = None
    tier: Tier | None = None
    request_rate: Positive | None = None
    start: Annotated[float, Meta(ge=0)] = 0.0
    stop: Positive | None = None


class LoadTenants(msgspec.Struct, frozen=True):
    """All tenants of a load."""

    all: tuple[LoadTenant, ...] = (LoadTenant(name=DEFAULT_TENANT),)

    @classmethod
    def read(cls, path: Path) -> "LoadTenants":
        """Read a JSON file with a list of tenants. Raises InvalidRequestError."""
        kind = tuple[LoadTenant, ...]
        found = read_json(path, kind, param="tenants", flag="--tenants")
        names = [tenant.name for tenant in found]
        if not names or len(set(names)) < len(names):
            raise InvalidRequestError(
                f"{path}: got tenants {names}, expected one or more with distinct names",
                param="tenants",
            )
        return cls(found)

    @property
    def shared(self) -> Sequence[LoadTenant]:
        """The tenants that share the common sessions."""
        return [tenant for tenant in self.all if tenant.request_rate is None]

    def weight(self, name: str) -> float:
        """Return the weight by which a tenant's service is judged."""
        for tenant in self.all:
            if tenant.name == name:
                return tenant.share if tenant.weight is None else tenant.weight
        return 1.0

    def key(self, name: str) -> str | None:
        """Return a tenant's API key, if it has one."""
        return next((tenant.key for tenant in self.all if tenant.name == name), None)
