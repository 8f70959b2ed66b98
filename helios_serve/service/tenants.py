"""The tenants file: shares and limits of tenants, read at the start and reloaded on SIGHUP."""

import asyncio
import signal
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from helios_serve.engine.requests.async_engine import AsyncEngine
from helios_serve.errors import InvalidRequestError
from helios_serve.logger import logger
from helios_serve.options.scheduling import TenantConfig
from helios_serve.store.keys import check_tenant_name

UNLIMITED = "unlimited"
"""A value that removes a default limit from a tenant. TOML has no null."""


class Tenants(NamedTuple):
    """Settings of the tenants by name, and the defaults for all others."""

    tenants: dict[str, TenantConfig]
    defaults: TenantConfig


def read_tenants(path: Path) -> Tenants:
    """Read a tenants file.

    Raises InvalidRequestError, which names the file, the table and the field.
    """
    try:
        content = tomllib.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        raise invalid_file(path, f"cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise invalid_file(path, f"is not valid TOML: {error}") from error
    if unknown := content.keys() - {"defaults", "tenants"}:
        raise invalid_file(path, f"got {min(unknown)!r}, expected [defaults] and [tenants.NAME]")
    defaults = table(path, content, "defaults")
    named = table(path, content, "tenants")
    tenants = {}
    for name in named:
        try:
            check_tenant_name(name)
        except InvalidRequestError as error:
            raise invalid_file(path, str(error)) from error
        own = table(path, named, name, "tenants.")
        tenants[name] = as_config(path, f"tenants.{name}", defaults | own)
    return Tenants(tenants, as_config(path, "defaults", defaults))


def table(path: Path, content: dict[str, Any], name: str, prefix: str = "") -> dict[str, Any]:
    """Return a table of the file, empty if it is missing."""
    found = content.get(name, {})
    if not isinstance(found, dict):
        raise invalid_file(
            path, f"got {prefix}{name} = {found!r}, expected a table [{prefix}{name}]"
        )
    return found


def as_config(path: Path, name: str, fields: dict[str, Any]) -> TenantConfig:
    """Convert the fields of table `name`."""
    given = {field: None if value == UNLIMITED else value for field, value in fields.items()}
    try:
        return msgspec.convert(given, TenantConfig)
    except msgspec.ValidationError as error:
        raise invalid_file(path, f"[{name}]: {error_text(error, fields)}") from error


def error_text(error: msgspec.ValidationError, fields: dict[str, Any]) -> str:
    """Return the message with the invalid value, which msgspec leaves out."""
    message, _, place = str(error).partition(" - at `$.")
    field = place.split("[")[0].rstrip("`")
    if field not in fields:
        return message
    return f"got {field} = {fields[field]!r}: {message[:1].lower()}{message[1:]}"


def invalid_file(path: Path, message: str) -> InvalidRequestError:
    return InvalidRequestError(f"{path}: {message}", param="tenants")


class TenantsFile:
    """A tenants file that is reloaded on SIGHUP.

    Create it in the main thread, because it installs a signal handler. `first` holds the settings
    at the start. Raises InvalidRequestError for an invalid file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.first = read_tenants(path)
        self._asked = asyncio.Event()
        signal.signal(signal.SIGHUP, lambda *_: self._asked.set())

    @asynccontextmanager
    async def reloading(self, engine: AsyncEngine) -> AsyncIterator[None]:
        """Apply the file to `engine` on every SIGHUP, for as long as the context is open."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self._asked.set)
        reloading = asyncio.create_task(self._reload_when_asked(engine))
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGHUP)
            # The default action would kill the server during shutdown.
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            reloading.cancel()
            await asyncio.gather(reloading, return_exceptions=True)

    async def _reload_when_asked(self, engine: AsyncEngine) -> None:
        while True:
            await self._asked.wait()
            self._asked.clear()
            await self._reload(engine)

    async def _reload(self, engine: AsyncEngine) -> None:
        """Apply the file. Nothing changes if it is invalid."""
        try:
            tenants, defaults = await asyncio.to_thread(read_tenants, self.path)
        except InvalidRequestError as error:
            logger.error("tenants are not reloaded: %s", error)
            return
        await engine.models.set_tenants(tenants, defaults)
        logger.info("reloaded %s: %d tenants", self.path, len(tenants))
