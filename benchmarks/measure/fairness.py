"""Fairness: how the server divided its frames among tenants that wanted more than they got."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from operator import itemgetter

import msgspec

from helios_serve.benchmarks.measure.playback import stalls
from helios_serve.benchmarks.measure.record import SessionRecord
from helios_serve.benchmarks.measure.statistics import jain

COUNTED_SHARE = 0.8
"""A tenant counts if it was backlogged for this share of the window."""

Span = tuple[float, float]


class TenantShare(msgspec.Struct, frozen=True):
    """The service that a tenant got.

    `backlogged` is the share of the window in which it was backlogged, and `rate` its frames per
    second of that time, divided by its weight.
    """

    weight: float
    backlogged: float
    frames: int
    weighted_rate: float | None


class Fairness(msgspec.Struct, frozen=True):
    """Jain's index over the counted tenants, and the best served one against the worst.

    None: fewer than two tenants were backlogged long enough to be compared. A small tenant that got
    all it wanted does not count as unfairness.
    """

    jain: float | None
    best_to_worst: float | None
    counted: list[str]
    shares: dict[str, TenantShare]


def fairness(
    records: Sequence[SessionRecord],
    window: Span,
    weight: Callable[[str], float],
    buffer: float,
) -> Fairness:
    """Compare the tenants of a run. A tenant is backlogged while one of its sessions waits for its
    first chunk, or its player, with a start-up buffer of `buffer` seconds, waits for the next one.
    """
    tenants = sorted({record.tenant for record in records})
    shares = {
        tenant: share_of(
            [record for record in records if record.tenant == tenant],
            window,
            weight(tenant),
            buffer,
        )
        for tenant in tenants
    }
    counted = [name for name, share in shares.items() if share.backlogged >= COUNTED_SHARE]
    rates = [rate for name in counted if (rate := shares[name].weighted_rate) is not None]
    if len(rates) < 2:
        return Fairness(None, None, counted, shares)
    worst = min(rates)
    return Fairness(jain(rates), max(rates) / worst if worst else None, counted, shares)


def share_of(
    records: Sequence[SessionRecord], window: Span, weight: float, buffer: float
) -> TenantShare:
    spans = union([span for record in records for span in waits(record, buffer)], window)
    seconds = sum(end - start for start, end in spans)
    frames = sum(
        chunk.frames
        for record in records
        for chunk in record.deliveries
        if is_covered(chunk.at, spans)
    )
    length = window[1] - window[0]
    return TenantShare(
        weight,
        seconds / length if length else 0.0,
        frames,
        frames / seconds / weight if seconds else None,
    )


def waits(record: SessionRecord, buffer: float) -> list[Span]:
    """Return the times during which a session waits for the server."""
    if not record.chunks:
        return [(record.intended, record.intended if record.ended is None else record.ended)]
    first = (record.intended, record.chunks[0].at)
    return [first, *stalls(record.chunks, record.fps, buffer)]


def is_covered(time: float, spans: Sequence[Span]) -> bool:
    """Return whether a time is in one of the spans, their starts excluded. They are ascending and
    do not overlap.
    """
    index = bisect_left(spans, time, key=itemgetter(0)) - 1
    return index >= 0 and time <= spans[index][1]


def union(spans: Sequence[Span], window: Span) -> list[Span]:
    """Return the parts of the window that the spans cover, without overlaps."""
    found: list[Span] = []
    for start, end in sorted(spans):
        start, end = max(start, window[0]), min(end, window[1])
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        elif start < end:
            found.append((start, end))
    return found
