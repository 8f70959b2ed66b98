"""The file of tenants: their shares and limits, read at the start and again at SIGHUP."""

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
"""Takes a limit of the defaults off a tenant: TOML has no word for nothing."""


class Tenants(NamedTuple):
    """What the file says: of tenants by name, and of all others."""

    tenants: dict[str, TenantConfig]
    defaults: TenantConfig


def read_tenants(path: Path) -> Tenants:
    """Raises InvalidRequestError that names the file, the table and the field at fault."""
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise invalid_file(path, f"cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise invalid_file(path, f"is no TOML: {error}") from error
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


def table(path: Path, content: dict[str, Any], name: str, within: str = "") -> dict[str, Any]:
    found = content.get(name, {})
    if not isinstance(found, dict):
        raise invalid_file(
            path, f"got {within}{name} = {found!r}, expected a table [{within}{name}]"
        )
    return found


def as_config(path: Path, where: str, fields: dict[str, Any]) -> TenantConfig:
    """The fields, checked one by one, so that the message can tell what was got."""
    given = {name: None if value == UNLIMITED else value for name, value in fields.items()}
    try:
        return msgspec.convert(given, TenantConfig)
    except msgspec.ValidationError as error:
        raise invalid_file(path, f"[{where}]: {error_text(error, fields)}") from error


def error_text(error: msgspec.ValidationError, fields: dict[str, Any]) -> str:
    """The error with what was got in it, which msgspec leaves out."""
    message, _, place = str(error).partition(" - at `$.")
    field = place.split("[")[0].rstrip("`")
    if field not in fields:
        return message
    return f"got {field} = {fields[field]!r}: {message[:1].lower()}{message[1:]}"


def invalid_file(path: Path, message: str) -> InvalidRequestError:
    return InvalidRequestError(f"{path}: {message}", param="tenants")


class TenantsFile:
    """A file that is read again at SIGHUP, from the making of this object on.

    That is to be in the main thread. Raises what `read_tenants` does.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.first = read_tenants(path)
        self._asked = asyncio.Event()
        signal.signal(signal.SIGHUP, lambda *_: self._asked.set())

    @asynccontextmanager
    async def reloading(self, engine: AsyncEngine) -> AsyncIterator[None]:
        """Within it the engine goes by what the file says."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self._asked.set)
        reloading = asyncio.create_task(self._reload_when_asked(engine))
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGHUP)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # not to end us while we shut down
            reloading.cancel()
            await asyncio.gather(reloading, return_exceptions=True)

    async def _reload_when_asked(self, engine: AsyncEngine) -> None:
        while True:
            await self._asked.wait()
            self._asked.clear()
            await self._reload(engine)

    async def _reload(self, engine: AsyncEngine) -> None:
        """The file is read whole before anything changes; where it is wrong nothing does."""
        try:
            tenants, defaults = await asyncio.to_thread(read_tenants, self.path)
        except InvalidRequestError as error:
            logger.error("tenants stay as they were: %s", error)
            return
        await engine.models.set_tenants(tenants, defaults)
        logger.info("%s was read again: it names %d tenants", self.path, len(tenants))
