"""Options of `helios-serve simulate`."""

from typing import Annotated

import msgspec
from msgspec import Meta

from helios_serve.options.realtime import Pacing


class FleetOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The simulated fleet: its devices, workers and cells, and what goes wrong."""

    device: Annotated[
        str,
        Meta(
            description="Device of the workers: h100, h200 or b200. Their costs follow from "
            "datasheets; nothing was measured.",
            extra={"metavar": "NAME"},
        ),
    ] = "h100"
    costs: Annotated[
        str | None,
        Meta(
            description="Measured costs of a device, from `simulate fit`, instead of --device.",
            extra={"metavar": "FILE.json"},
        ),
    ] = None
    host_cores: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(
            description="CPU cores of a host. The costs say how many each worker keeps busy.",
            extra={"metavar": "N", "default": "as many as its workers need"},
        ),
    ] = None
    host_workers: Annotated[
        int,
        Meta(ge=1, description="Workers on each host.", extra={"metavar": "N"}),
    ] = 8
    cells: Annotated[
        int,
        Meta(
            ge=1,
            le=1000,
            description="Engines, each with workers of its own, behind a balancer.",
            extra={"metavar": "N"},
        ),
    ] = 1
    report_lag: Annotated[
        float,
        Meta(
            ge=0,
            description="Seconds between two reports of the cells' loads to the balancer.",
            extra={"metavar": "SECONDS"},
        ),
    ] = 1.0
    start_seconds: Annotated[
        Annotated[float, Meta(ge=0)] | None,
        Meta(
            description="Seconds from the start of a worker, or of a cell, until it is ready.",
            extra={"metavar": "SECONDS", "default": "the device's"},
        ),
    ] = None
    deliver_seconds: Annotated[
        float,
        Meta(
            ge=0,
            description="Seconds from when a chunk is decoded until its client has it: commit and "
            "network.",
            extra={"metavar": "SECONDS"},
        ),
    ] = 0.0
    max_lead: Annotated[
        Annotated[int, Meta(ge=1, le=32)] | None,
        Meta(
            description="Chunks that sessions run ahead, as `max_lead_chunks` of live sessions.",
            extra={"metavar": "N", "default": "no limit, as for jobs"},
        ),
    ] = None
    pacing: Annotated[
        Pacing, Meta(description="What --max-lead counts from: chunks delivered, or seen.")
    ] = "media"
    realtime_share: Annotated[
        float,
        Meta(
            ge=0.01,
            le=1,
            description="Share of a worker's rate that priority sessions may reserve.",
            extra={"metavar": "X"},
        ),
    ] = 0.85
    kill: Annotated[
        tuple[str, ...],
        Meta(
            description="Let workers die, such as 60:3 or, for a node, 60:0-7. They are numbered "
            "from 0 through all cells, in the order of their starts, and are started again.",
            extra={"metavar": "SECONDS:WORKERS"},
        ),
    ] = ()
    kill_cell: Annotated[
        tuple[str, ...],
        Meta(
            description="Let cells die. Their sessions resume when they are ready again.",
            extra={"metavar": "SECONDS:CELLS"},
        ),
    ] = ()
    drain: Annotated[
        tuple[str, ...],
        Meta(
            description="Drain workers, which are not replaced.",
            extra={"metavar": "SECONDS:WORKERS"},
        ),
    ] = ()
    mtbf: Annotated[
        Annotated[float, Meta(ge=1e-3)] | None,
        Meta(
            description="Hours after which a worker dies on average.",
            extra={"metavar": "HOURS", "default": "never"},
        ),
    ] = None
    jitter: Annotated[
        bool,
        Meta(
            description="Vary durations as measured ones differ from what --costs predict for them."
        ),
    ] = False
    trace: Annotated[
        str | None,
        Meta(
            description="Write a file for Perfetto with the work of every worker.",
            extra={"metavar": "FILE.json"},
        ),
    ] = None


class FitOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a trace does not say of a device."""

    name: Annotated[
        str | None,
        Meta(
            description="Name of the device.",
            extra={"metavar": "TEXT", "default": "this machine's processor"},
        ),
    ] = None
    text_rows: Annotated[
        int,
        Meta(
            ge=1,
            description="Prompt tokens whose keys and values fit the memory of a worker.",
            extra={"metavar": "N"},
        ),
    ] = 100_000
