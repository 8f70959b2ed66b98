"""Who sends a request."""

from starlette.requests import HTTPConnection

from helios_serve.sampling_params import DEFAULT_TENANT

TENANT = "helios.tenant"
"""Where a middleware that knows the sender puts the tenant's name in the scope."""


def tenant_of(connection: HTTPConnection) -> str:
    """The tenant whose videos the sender may see, and in whose name it asks for more."""
    name: str = connection.scope.get(TENANT, DEFAULT_TENANT)
    return name
