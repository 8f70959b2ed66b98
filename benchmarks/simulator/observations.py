"""What a trace of `helios-serve serve --trace` says of the time of plans and tasks."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from helios_serve.benchmarks.simulator.costs import Lane, StepSize
from helios_serve.errors import InvalidRequestError
from helios_serve.model_config import Geometry

Event = dict[str, Any]
ENDINGS: tuple[tuple[str, Lane], ...] = (
    (" encode", "encode"),
    (" decode", "decode"),
    (" segments", "segment"),
)


class Observation(NamedTuple):
    """A plan or a task that took `seconds`, from `start` on, on a worker.

    `steps` are those of a plan. A task has the size of its video and the number of its prompts.
    `beside` has the seconds in which each set of other lanes of the worker was busy as well.
    """

    worker: str
    lane: Lane
    start: float
    seconds: float
    steps: tuple[StepSize, ...] = ()
    geometry: Geometry | None = None
    prompts: int = 0
    has_reference: bool = False
    beside: tuple[tuple[frozenset[Lane], float], ...] = ()

    @property
    def end(self) -> float:
        return self.start + self.seconds


class CpuUse(NamedTuple):
    """CPU seconds that a process had used at `time`. The server is the worker `server`."""

    worker: str
    time: float
    seconds: float


class TraceFacts(NamedTuple):
    """A trace's observations in the order of time, the history blocks of a worker, and the CPU time
    of its processes, which older servers do not trace.
    """

    observations: list[Observation]
    num_blocks: int
    cpu: list[CpuUse] = []


def read_observations(path: Path) -> TraceFacts:
    """Read a trace of one model.

    The trace of a server that still runs has no end. Raises InvalidRequestError for any other file,
    and for a trace without plans.
    """
    events = read_events(path)
    lanes = {
        (event["pid"], event["tid"]): str(event["args"]["name"])
        for event in events
        if event.get("name") == "thread_name"
    }
    slices = [event for event in events if event.get("ph") == "X"]
    sizes = dict(sizes_of(slices))
    found = [
        observation
        for event in slices
        if (observation := observe(event, lanes[event["pid"], event["tid"]], sizes)) is not None
    ]
    workers = {each.worker for each in found if each.steps}
    totals = blocks_of(events)
    if not workers or not totals:
        raise InvalidRequestError(
            f"{path}: got no plan with the sizes of its steps, expected a trace that `helios-serve "
            "serve --trace` of this version wrote under load",
            param="trace",
        )
    found.sort(key=lambda each: each.start)
    return TraceFacts(list(with_overlap(found)), max(totals) // len(workers) + 1, cpu_of(events))


def read_events(path: Path) -> list[Event]:
    """Read the events of a trace. Raises InvalidRequestError."""
    try:
        text = path.read_bytes().rstrip()
        if not text.endswith(b"]"):  # it ends within an event, or after one
            text = text[: text.rfind(b"\n")].rstrip().rstrip(b",") + b"]"
        return msgspec.json.decode(text, type=list[Event])
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequestError(
            f"got trace {path}, expected a file of `helios-serve serve --trace`: {error}",
            param="trace",
        ) from error


def sizes_of(slices: Iterable[Event]) -> Iterator[tuple[str, Geometry]]:
    """Yield the size of each session, which its steps name."""
    for event in slices:
        for step in event["args"].get("steps", ()):
            if "width" in step:
                yield step["session"], Geometry(step["height"], step["width"])


def observe(event: Event, lane: str, sizes: dict[str, Geometry]) -> Observation | None:
    """Return what a slice says; None if it says nothing of costs."""
    details, start, seconds = event["args"], event["ts"] / 1e6, event["dur"] / 1e6
    for ending, role in ENDINGS:
        if not lane.endswith(ending):
            continue
        size = sizes.get(details["session"])
        if size is None or details.get("error") is not None:
            return None
        prompts, has_reference = details.get("prompts", 0), details.get("has_reference", False)
        worker = lane.removesuffix(ending)
        return Observation(
            worker, role, start, seconds, (), size, prompts, has_reference=has_reference
        )
    steps = tuple(
        StepSize(Geometry(step["height"], step["width"]), step["stage"], step["branches"])
        for step in details["steps"]
        if "width" in step
    )
    return Observation(lane, "denoise", start, seconds, steps) if steps else None


def with_overlap(observations: Sequence[Observation]) -> Iterator[Observation]:
    """Count for each observation the seconds that it shared with other lanes of its worker."""
    by_worker: dict[str, list[Observation]] = {}
    for each in observations:
        by_worker.setdefault(each.worker, []).append(each)
    for own in by_worker.values():
        starts = [each.start for each in own]
        longest = max(each.seconds for each in own)
        for each in own:
            first = bisect_left(starts, each.start - longest)
            near = own[first : bisect_left(starts, each.end)]
            yield each._replace(beside=tuple(busy_beside(each, near).items()))


def busy_beside(each: Observation, near: Sequence[Observation]) -> dict[frozenset[Lane], float]:
    """Return the seconds of an observation in which each set of other lanes was busy."""
    changes = []
    for other in near:
        start, end = max(each.start, other.start), min(each.end, other.end)
        if other.lane != each.lane and end > start:
            changes += [(start, 1, other.lane), (end, -1, other.lane)]
    found: dict[frozenset[Lane], float] = {}
    busy: Counter[Lane] = Counter()
    since = each.start
    for time, change, lane in sorted(changes):
        others = frozenset(name for name, count in busy.items() if count > 0)
        if others and time > since:
            found[others] = found.get(others, 0.0) + time - since
        busy[lane] += change
        since = time
    return found


def cpu_of(events: Iterable[Event]) -> list[CpuUse]:
    """Return the CPU seconds of workers and server over time."""
    return [
        CpuUse(worker, event["ts"] / 1e6, seconds)
        for event in events
        if event.get("name") == "CPU seconds"
        for worker, seconds in event["args"].items()
    ]


def blocks_of(events: Iterable[Event]) -> list[int]:
    """Return the history blocks of all workers together, but for the null blocks, over time."""
    return [
        int(event["args"]["used"] + event["args"]["free"])
        for event in events
        if event.get("name") == "history blocks"
    ]
