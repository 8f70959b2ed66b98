"""Draws a workload: every session, before the run, from one seed."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np
from msgspec import Meta

from helios_serve.benchmarks.load.arrivals import (
    ArrivalProcess,
    AtOnce,
    BurstArrivals,
    ConstantArrivals,
    GammaArrivals,
    Ramp,
    RateSeries,
    VaryingArrivals,
    draw_times,
)
from helios_serve.benchmarks.load.json_file import text_of
from helios_serve.benchmarks.load.prompts import prompts_of
from helios_serve.benchmarks.load.request import SessionRequest
from helios_serve.benchmarks.load.tenants import LoadTenant, LoadTenants
from helios_serve.benchmarks.load.trace_file import encode_trace, parse_line, read_trace
from helios_serve.errors import InvalidRequestError
from helios_serve.options.benchmarks import LoadOptions, Task, Tier

DEFAULT_SESSIONS = 32
DEFAULT_FRAMES = 99
MAX_SESSIONS = 1_000_000
CLOSED_SESSIONS = 20_000
"""Sessions that are drawn for a closed loop of a given duration: more than it can run."""


class Shape(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A kind of session. None: the value is that of the load's option."""

    width: int | None = None
    height: int | None = None
    num_frames: Annotated[int, Meta(ge=1)] | None = None
    fps: Annotated[int, Meta(ge=1, le=120)] | None = None
    steps: tuple[int, ...] | None = None
    task: Task | None = None
    tier: Tier | None = None
    weight: Annotated[float, Meta(gt=0)] = 1.0


class ShapeMix:
    """Draws shapes in proportion to their weights."""

    def __init__(self, shapes: Sequence[Shape]) -> None:
        self.shapes = tuple(shapes)
        weights = np.array([shape.weight for shape in shapes])
        self._shares = weights / weights.sum()

    @classmethod
    def of(cls, options: LoadOptions) -> "ShapeMix":
        """Build the mix from `--random-request-config`, or of the one shape that flags give.

        Raises InvalidRequestError for any other text.
        """
        if options.random_request_config is None:
            return cls([Shape()])
        try:
            shapes = msgspec.json.decode(options.random_request_config, type=list[Shape])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidRequestError(
                f"--random-request-config: {error}", param="random_request_config"
            ) from error
        if not shapes:
            raise InvalidRequestError(
                "got an empty --random-request-config, expected at least one shape",
                param="random_request_config",
            )
        return cls(shapes)

    def draw(self, random: np.random.Generator) -> Shape:
        return self.shapes[int(random.choice(len(self.shapes), p=self._shares))]


class Workload(NamedTuple):
    """The sessions of a run in order of time, their tenants, and the options of the load.

    In a closed loop, the times are not used.
    """

    requests: tuple[SessionRequest, ...]
    tenants: LoadTenants
    options: LoadOptions

    @property
    def is_closed(self) -> bool:
        return self.options.users is not None

    @property
    def sha256(self) -> str:
        """Digest of the trace. Runs with equal digests send the same requests."""
        return hashlib.sha256(encode_trace(self.requests)).hexdigest()


class Streams(NamedTuple):
    """A random generator for each kind of value, so that drawing one does not change the others."""

    arrivals: np.random.Generator
    shapes: np.random.Generator
    prompts: np.random.Generator
    tenants: np.random.Generator
    behaviour: np.random.Generator

    @classmethod
    def of(cls, seed: int) -> "Streams":
        children = np.random.SeedSequence(seed).spawn(len(cls._fields))
        return cls(*map(np.random.default_rng, children))


def draw_workload(options: LoadOptions) -> Workload:
    """Draw the workload that the options describe; the same options give the same workload.

    Raises InvalidRequestError for options that contradict each other, and for invalid files.
    """
    check(options)
    tenants = LoadTenants()
    if options.tenants is not None:
        tenants = LoadTenants.read(Path(options.tenants))
    is_trace = options.dataset_name == "trace"
    requests = replayed(options) if is_trace else drawn(options, tenants)
    if not requests:
        raise InvalidRequestError(
            "got a load without sessions, expected at least one: raise --duration or the rate",
            param="duration",
        )
    return Workload(tuple(requests), tenants, options)


def check(options: LoadOptions) -> None:
    """Raise InvalidRequestError for options that contradict each other."""
    rated = options.request_rate != math.inf
    ramp = (options.ramp_up_strategy, options.ramp_up_start_rps, options.ramp_up_end_rps)
    conflicts = (
        (options.users is not None and rated, "--users with --request-rate", "one of them"),
        (options.users is not None and options.max_concurrency is not None,
         "--users with --max-concurrency", "one of them"),
        (options.arrival == "poisson" and options.burstiness != 1,
         "--arrival poisson with --burstiness", "--arrival gamma"),
        (options.arrival == "series" and options.rate_series is None,
         "--arrival series", "--rate-series as well"),
        (options.arrival in ("constant", "burst") and not rated and options.users is None,
         f"--arrival {options.arrival} without a rate", "--request-rate as well"),
        (0 < ramp.count(None) < len(ramp), "an incomplete ramp",
         "all of --ramp-up-strategy, --ramp-up-start-rps, --ramp-up-end-rps"),
        (options.ramp_up_strategy is not None and rated,
         "--ramp-up-strategy with --request-rate", "one of them"),
        (options.think_time > 0 and options.users is None, "--think-time", "--users as well"),
    )  # fmt: skip
    for is_wrong, got, expected in conflicts:
        if is_wrong:
            raise InvalidRequestError(f"got {got}, expected {expected}", param="request_rate")


def replayed(options: LoadOptions) -> list[SessionRequest]:
    """Return the sessions of the trace that the options select, at the requested speed."""
    if options.dataset_path is None:
        raise InvalidRequestError(
            "missing --dataset-path, expected a trace.jsonl", param="dataset_path"
        )
    limit = math.inf if options.duration is None else options.duration
    requests = [
        msgspec.structs.replace(request, timestamp=request.timestamp / options.trace_speed)
        for request in read_trace(Path(options.dataset_path))
    ]
    return [request for request in requests if request.intended < limit][: options.num_prompts]


def drawn(options: LoadOptions, tenants: LoadTenants) -> list[SessionRequest]:
    """Draw all times and tenants, then the request of each session."""
    streams = Streams.of(options.seed)
    prompts = prompts_of(options.dataset_name, options.dataset_path, streams.prompts)
    shapes = ShapeMix.of(options)
    starts = sorted(arrivals(options, tenants, streams), key=lambda start: start[0])
    return [
        request_of(options, tenant, time, next(prompts), shapes, streams) for time, tenant in starts
    ]


def arrivals(
    options: LoadOptions, tenants: LoadTenants, streams: Streams
) -> Iterator[tuple[float, LoadTenant]]:
    """Yield the time and the tenant of each session. Tenants with a rate have their own times."""
    num, duration = options.num_prompts, options.duration
    if num is None and duration is None:
        num = DEFAULT_SESSIONS
    if options.users is not None and num is None:
        num = CLOSED_SESSIONS
    if num is None:
        num = MAX_SESSIONS
    limit = math.inf if duration is None or options.users is not None else duration
    if shared := tenants.shared:
        if limit < math.inf and isinstance(process_of(options, num), AtOnce):
            raise InvalidRequestError(
                "got --duration without a rate, expected --request-rate, or a request_rate of each "
                "tenant",
                param="request_rate",
            )
        shares = np.array([tenant.share for tenant in shared])
        times = draw_times(process_of(options, num), streams.arrivals, num=num, duration=limit)
        chosen = streams.tenants.choice(len(shared), size=len(times), p=shares / shares.sum())
        last = times[-1] if times and duration is None else limit
        yield from ((time, shared[int(index)]) for time, index in zip(times, chosen, strict=True))
    else:
        last = limit
    for tenant in tenants.all:
        if tenant.request_rate is not None:
            process = GammaArrivals(tenant.request_rate, options.burstiness)
            end = last if tenant.stop is None else min(last, tenant.stop)
            times = draw_times(process, streams.arrivals, num=num, duration=end - tenant.start)
            yield from ((tenant.start + time, tenant) for time in times)


def process_of(options: LoadOptions, num: int) -> ArrivalProcess:
    """Return the arrival process that the options describe. Raises InvalidRequestError."""
    rate = options.request_rate
    if options.ramp_up_strategy is not None:
        start, end = options.ramp_up_start_rps, options.ramp_up_end_rps
        assert start is not None and end is not None, "checked"  # noqa: PT018
        is_exponential = options.ramp_up_strategy == "exponential"
        if options.duration is not None:
            return VaryingArrivals(Ramp(start, end, options.duration, is_exponential))
        ramp = Ramp.for_sessions(start, end, num, is_exponential=is_exponential)
        return VaryingArrivals(ramp)
    if options.arrival == "series":
        assert options.rate_series is not None, "checked"
        return VaryingArrivals(read_series(Path(options.rate_series)))
    if options.users is not None or rate == math.inf:
        return AtOnce()
    match options.arrival:
        case "constant":
            return ConstantArrivals(rate)
        case "burst":
            return BurstArrivals(rate, options.burst_size)
    return GammaArrivals(rate, options.burstiness)


def read_series(path: Path) -> RateSeries:
    """Read a CSV with SECONDS,SESSIONS_PER_SECOND. Raises InvalidRequestError, with the line."""
    points = []
    for number, line in enumerate(text_of(path).splitlines(), start=1):
        try:
            seconds, rate = map(float, line.split(","))
        except ValueError as error:
            raise InvalidRequestError(
                f"{path}, line {number}: got {line[:60]!r}, expected SECONDS,SESSIONS_PER_SECOND",
                param="rate_series",
            ) from error
        points.append((seconds, rate))
    return RateSeries(tuple(points))


def request_of(
    options: LoadOptions,
    tenant: LoadTenant,
    time: float,
    prompt: dict[str, Any],
    shapes: ShapeMix,
    streams: Streams,
) -> SessionRequest:
    """Draw the request of a session.

    Fields that come with the prompt override the shape, and the shape overrides the load's options.
    """
    shape = shapes.draw(streams.shapes)
    own = {
        name: value for name, value in msgspec.structs.asdict(shape).items() if value is not None
    }
    del own["weight"]
    fields: dict[str, Any] = {
        "width": options.width,
        "height": options.height,
        "num_frames": DEFAULT_FRAMES,
        "fps": options.fps,
        "steps": options.steps,
        "task": options.task,
        "tier": tenant.tier or options.tier,
        "seed": int(streams.behaviour.integers(2**31)),
    }
    given = {} if options.num_frames is None else {"num_frames": options.num_frames}
    fields |= own | prompt | given
    if tenant.tier is not None:
        fields["tier"] = tenant.tier
    fields |= {"timestamp": time * 1000, "tenant": tenant.name}
    request = parse_line(fields, "the workload")
    return with_behaviour(request, options, streams.behaviour)


def with_behaviour(
    request: SessionRequest, options: LoadOptions, random: np.random.Generator
) -> SessionRequest:
    """Draw prompt switches, and the time at which the client leaves."""
    seconds = request.num_frames / request.fps
    switches: list[tuple[float, str]] = []
    if options.switch_every is not None:
        step = options.switch_every
        number = math.ceil(seconds / step) - 1
        switches = [
            (1000 * step * index, f"{request.prompt}, then scene {index + 1}")
            for index in range(1, number + 1)
        ]
    stop = None
    if random.random() < options.cancel_share:
        stop = 1000 * seconds * float(random.random())
    return msgspec.structs.replace(
        request,
        switches=tuple(switches) or request.switches,
        stop_after_ms=stop if stop is not None else request.stop_after_ms,
    )
