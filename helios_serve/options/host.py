"""Options of an engine that runs inside another server."""

from typing import Annotated

import msgspec
from msgspec import Meta

from helios_serve.options.workers import ExecutorKind


class HostOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Which workers run inside another server, and where."""

    workers: Annotated[
        tuple[str, ...],
        Meta(description="Workers to start, each as in `helios-serve serve --workers`."),
    ] = ("1",)
    executor: Annotated[
        ExecutorKind | None,
        Meta(
            description="inline: threads of the server's process; local: processes; ray: Ray "
            "actors.",
            extra={"default": "ray with `ray_address`, else inline"},
        ),
    ] = None
    ray_address: Annotated[
        str | None,
        Meta(
            description="Address of the Ray cluster; without one, executor `ray` starts a cluster "
            "on this machine."
        ),
    ] = None
    exit_without_workers: Annotated[
        float,
        Meta(
            ge=0,
            description="If no worker can be started for this many seconds, the engine counts as "
            "dead, and the server's health check fails.",
            extra={"metavar": "SECONDS"},
        ),
    ] = 60.0
