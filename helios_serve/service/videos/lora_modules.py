"""The LoRA adapters that the server offers, and the tenants that may use them."""

from collections.abc import Collection, Mapping

from helios_serve.options.scheduling import TenantConfig
from helios_serve.service.errors import ApiError


class LoraModules:
    """Adapters by name. Their paths stay inside the server.

    Args:
        paths: Files or folders of the adapters, by name (`--lora-modules`).
    """

    def __init__(self, paths: Mapping[str, str] | None = None) -> None:
        self.paths = paths or {}

    def names(self, tenant: TenantConfig) -> list[str]:
        """Return the names of the adapters that a tenant may use."""
        return [name for name in self.paths if is_allowed(name, tenant.loras)]

    def path(self, name: str, tenant: TenantConfig) -> str:
        """Return the path of an adapter.

        Raises ApiError 404 if the server does not offer it to the tenant, with the same message as
        for an unknown adapter.
        """
        names = self.names(tenant)
        if name not in names:
            offered = f"one of: {', '.join(names)}" if names else "none: no adapter is offered"
            raise ApiError(
                404, f"got lora {name!r}, expected {offered}", code="lora_not_found", param="lora"
            )
        return self.paths[name]

    def check(self, path: str, tenant: TenantConfig) -> None:
        """Check the adapter of a stored request again before another video is made with it.

        Raises ApiError 404 if the server no longer offers it, or no longer to the tenant.
        """
        if path not in (self.paths[name] for name in self.names(tenant)):
            raise ApiError(
                404,
                "the LoRA adapter of this video is no longer offered: create a new video instead",
                code="lora_not_found",
                param="lora",
            )


def is_allowed(name: str, allowed: Collection[str] | None) -> bool:
    return allowed is None or name in allowed
