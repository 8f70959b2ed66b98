"""Server-sent events, as browsers read them."""

import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple


class Event(NamedTuple):
    """`number` is what a browser sends as `Last-Event-ID` when it comes again."""

    number: str | None
    name: str
    data: dict[str, Any]


def events_in(lines: Iterable[str]) -> Iterator[Event]:
    """The events of a stream's lines, as they come."""
    fields: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(": ")
        if line and key:
            fields[key] = value
        elif not line and "data" in fields:
            yield Event(fields.get("id"), fields["event"], json.loads(fields["data"]))
            fields = {}
        elif not line:
            fields = {}


def lasting(events: Iterable[Event]) -> list[Event]:
    """Those that tell of something that happened once."""
    return [event for event in events if event.number is not None]
