"""Server-sent events, as browsers read them."""

import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple


class Event(NamedTuple):
    """A server-sent event. A browser sends `number` as `Last-Event-ID` when it reconnects."""

    number: str | None
    name: str
    data: dict[str, Any]


def events_in(lines: Iterable[str]) -> Iterator[Event]:
    """Yield the events in the lines of a stream."""
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
    """Return the events that have an id, which are reported only once."""
    return [event for event in events if event.number is not None]
