"""Options of an engine inside another server: which workers it starts, and where."""

from typing import Annotated

import msgspec
from msgspec import Meta

from helios_serve.options.workers import ExecutorKind


class HostOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Which workers run inside another server, and where."""

    workers: Annotated[
        tuple[str, ...],
        Meta(description="Workers, each entry written as for `helios-serve serve --workers`."),
    ] = ("1",)
    executor: Annotated[
        ExecutorKind | None,
        Meta(
            description="inline: threads of the server's process; local: processes; ray: actors.",
            extra={"default": "ray with an address, else inline"},
        ),
    ] = None
    ray_address: Annotated[
        str | None,
        Meta(description="The Ray cluster to use; `ray` without one starts one on this machine."),
    ] = None
