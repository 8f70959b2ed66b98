"""Whether denoising waits for decoding: reads the trace of a server or of the engine.

    helios-serve serve nano --trace trace.json     # and let it make some videos
    python benchmarks/micro/overlap.py trace.json [--decoders 1] [--output results.json]

For each worker: seconds of steps, of frames and of segments, how long at least two of them ran at
once, and the pauses of its steps between the first and the last one. A pause is explained by the
bound on how far a session may run ahead where each session that goes on after it had as many
chunks denoised and not delivered as it may. Needs msgspec and torch.
"""

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from helios_serve.core.decode_lead import CHUNKS_AHEAD

SHORTEST_PAUSE = 0.05
"""Seconds between two plans that count as a pause: more than sending a plan takes on a busy CPU."""

Event = dict[str, Any]


class Span(NamedTuple):
    """A slice of a lane, in seconds since the trace began."""

    start: float
    end: float
    details: Event


class Pause(NamedTuple):
    """Time without a step. `is_bound`: no session might run further ahead of the decoders."""

    seconds: float
    is_bound: bool


def read_lanes(path: Path) -> dict[str, list[Span]]:
    """Return the slices of each lane of a trace, also of one whose end is missing, in order."""
    text = path.read_text().rstrip().removesuffix("]").rstrip().rstrip(",")
    events: list[Event] = json.loads(text + "]")
    names = {
        (event["pid"], event["tid"]): event["args"]["name"]
        for event in events
        if event["name"] == "thread_name"
    }
    lanes: defaultdict[str, list[Span]] = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            start = event["ts"] / 1e6
            span = Span(start, start + event["dur"] / 1e6, event["args"])
            lanes[names[event["pid"], event["tid"]]].append(span)
    return {name: sorted(spans, key=lambda span: span.start) for name, spans in lanes.items()}


def pauses(steps: list[Span], delivered: list[Span], ahead: int) -> Iterator[Pause]:
    """Yield the pauses between `steps`; `delivered` are segments, by their ends."""
    steps = [span for span in steps if span.details.get("steps")]
    for before, after in zip(steps, steps[1:], strict=False):
        seconds = after.start - before.end
        if seconds < SHORTEST_PAUSE:
            continue
        out: Counter[str] = Counter()
        for span in delivered:
            if span.end <= before.end:
                out[span.details["session"]] += 1
        going_on = {step["session"]: step["chunk"] for step in after.details["steps"]}
        bound = all(chunk - out[name] >= ahead for name, chunk in going_on.items())
        yield Pause(seconds, bound)


def busy(spans: list[Span]) -> float:
    return sum(span.end - span.start for span in spans)


def shared(lanes: list[list[Span]]) -> float:
    """Return the seconds in which at least two lanes have a slice."""
    edges = sorted(
        [(span.start, 1) for lane in lanes for span in lane]
        + [(span.end, -1) for lane in lanes for span in lane]
    )
    total, running, since = 0.0, 0, 0.0
    for time, change in edges:
        if running >= 2:
            total += time - since
        running, since = running + change, time
    return total


def summary(lanes: dict[str, list[Span]], decoders: int) -> dict[str, Any]:
    """Return the figures of each worker that has steps."""
    found = {}
    segments = [
        span for name, spans in lanes.items() if name.endswith(" segments") for span in spans
    ]
    for name, steps in lanes.items():
        if not any("steps" in span.details for span in steps):
            continue
        own = [steps, *(lanes.get(f"{name} {kind}", []) for kind in ("decode", "segments"))]
        waits = list(pauses(steps, segments, decoders + CHUNKS_AHEAD))
        found[name] = {
            "seconds": dict(zip(("steps", "frames", "segments"), map(busy, own), strict=True)),
            "seconds_shared": shared(own),
            "pauses_by_the_bound": [pause.seconds for pause in waits if pause.is_bound],
            "other_pauses": [pause.seconds for pause in waits if not pause.is_bound],
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trace", type=Path)
    parser.add_argument("--decoders", type=int, default=1, help="workers that decode (default: 1)")
    parser.add_argument("--output", type=Path, help="write the result as JSON")
    given = parser.parse_args()
    found = summary(read_lanes(given.trace), given.decoders)
    print(json.dumps(found, indent=2))
    if given.output is not None:
        given.output.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
