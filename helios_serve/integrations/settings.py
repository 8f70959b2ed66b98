"""Settings of an engine inside another server, as users write them in that server's options."""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import msgspec

from helios_serve.errors import InvalidRequestError
from helios_serve.options.fields import options_of, read_options, unknown_option
from helios_serve.options.host import HostOptions
from helios_serve.options.scheduling import BatchLimits, SchedulingConfig
from helios_serve.options.workers import ExecutorKind, WorkerGroup, WorkerOptions, groups_for

Part = TypeVar("Part", bound=msgspec.Struct)

OPTIONS = (HostOptions, WorkerOptions, BatchLimits)


class EngineSettings(NamedTuple):
    """The options of `helios-serve serve` that apply inside another server."""

    host: HostOptions = HostOptions()
    worker: WorkerOptions = WorkerOptions()
    limits: BatchLimits = BatchLimits()

    @classmethod
    def read(cls, options: Mapping[str, Any], source: str) -> "EngineSettings":
        """Read the settings from plain values by name.

        Raises InvalidRequestError, whose message starts with `source`: where the user sets them.
        """
        known = {name for kind in OPTIONS for name in options_of(kind)}
        for name in options:
            if name not in known:
                message = unknown_option(name, *OPTIONS)
                raise InvalidRequestError(f"{source}: {message}", param="options")
        try:
            return cls(
                _part(HostOptions, options),
                _part(WorkerOptions, options),
                _part(BatchLimits, options),
            )
        except InvalidRequestError as error:
            raise InvalidRequestError(f"{source}: {error}", param="options") from error

    @property
    def executor_kind(self) -> ExecutorKind:
        """The executor that is set, or the default: ray with an address, else inline."""
        return self.host.executor or ("ray" if self.host.ray_address else "inline")

    @property
    def scheduling(self) -> SchedulingConfig:
        """The scheduler's settings."""
        return msgspec.convert(self.limits, SchedulingConfig, from_attributes=True)

    def worker_groups(self, model: str) -> tuple[WorkerGroup, ...]:
        """Return the workers to start. Raises InvalidRequestError."""
        return groups_for(model, map(_group, self.host.workers), self.worker)


def _part(kind: type[Part], options: Mapping[str, Any]) -> Part:
    own = {name: value for name, value in options.items() if name in options_of(kind)}
    return read_options(kind, own, strict=False)


def _group(text: str) -> WorkerGroup:
    try:
        return WorkerGroup.parse(text)
    except ValueError as error:
        raise InvalidRequestError(
            f"got workers {text!r}, expected N, N:ROLES or N:ROLES@KEY=VALUE,..., "
            "such as 2:denoise@gpus=0.5",
            param="workers",
        ) from error
