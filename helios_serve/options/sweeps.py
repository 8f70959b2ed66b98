"""Options of `helios-serve bench sweep` and `bench compare`."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Axis = Literal["request-rate", "users"]
"""What a search raises: sessions per second, or users of a closed loop."""


class SweepOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Which loads a sweep runs: those of a file, or those of a search for the capacity."""

    bench_params: Annotated[
        str | None,
        Meta(
            description="Grid: a JSON list of runs, each an object with options of the load, such "
            'as [{"request_rate": 0.5}, {"users": 4}].',
            extra={"metavar": "FILE.json"},
        ),
    ] = None
    search: Annotated[
        Axis | None,
        Meta(description="Search the largest load whose share of good sessions is high enough."),
    ] = None
    search_start: Annotated[
        float,
        Meta(ge=0.001, description="First load of the search.", extra={"metavar": "X"}),
    ] = 1.0
    search_limit: Annotated[
        float,
        Meta(ge=0.001, description="Largest load of the search.", extra={"metavar": "X"}),
    ] = 1000.0
    target: Annotated[
        float,
        Meta(
            ge=0.01,
            le=0.999,
            description="Share of good sessions that the lower bound of its interval must reach.",
            extra={"metavar": "X"},
        ),
    ] = 0.99
    resolution: Annotated[
        float,
        Meta(
            ge=0.01,
            le=1,
            description="Relative difference of loads at which the search ends.",
            extra={"metavar": "X"},
        ),
    ] = 0.1
    max_runs: Annotated[
        int,
        Meta(ge=1, description="Runs of a load that stays undecided.", extra={"metavar": "N"}),
    ] = 3


class CompareOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How two results, or two servers, are compared."""

    fail_on: Annotated[
        tuple[str, ...],
        Meta(
            description="What is a regression, such as p99_ttfc_ms>+10% or frames_per_second<-5%.",
            extra={
                "metavar": "GATE",
                "default": "mean_ttfc_ms, mean_icl_ms and mean_e2el_ms >+5%, "
                "frames_per_second <-5%",
            },
        ),
    ] = ()
    alternate: Annotated[
        Annotated[int, Meta(ge=2, le=100)] | None,
        Meta(
            description="Measure --base-url and --new-url in turns, this many rounds, with a seed "
            "for each round.",
            extra={"metavar": "ROUNDS"},
        ),
    ] = None
    new_url: Annotated[
        str | None,
        Meta(description="URL of the server to compare with the base.", extra={"metavar": "URL"}),
    ] = None
