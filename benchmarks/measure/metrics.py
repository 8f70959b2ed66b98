"""Metrics of one session. Every latency counts from the intended start, in seconds."""

from typing import NamedTuple

from helios_serve.benchmarks.measure.playback import needed_buffer, play, shown_at
from helios_serve.benchmarks.measure.record import SessionRecord


class SessionMetrics(NamedTuple):
    """The metrics of a session. None: it did not get so far, or the timing mode cannot tell.

    - `ttfc`: time to the first chunk; `e2el`: to the last one.
    - `service_ttfc`, `service_e2el`: the same from when the request was sent.
    - `icls`: time from each chunk to the next; `chunk_rtfs`: divided by the chunk's playback time.
    - `session_rtf`: the same over all chunks but the first; `e2e_rtf`: over the whole session.
    - `needed_buffer`: the smallest start-up buffer without a stall.
    - `stall_seconds`, `stalls`, `rebuffer_ratio`: of a player with the given buffer.
    - `switch_latencies`: from a prompt switch to the first chunk that it affects.
    - `switch_playbacks`: from a prompt switch to when a player shows that chunk.
    """

    ttfc: float | None
    e2el: float | None
    service_ttfc: float | None
    service_e2el: float | None
    accept_latency: float | None
    send_lag: float | None
    icls: list[float]
    chunk_rtfs: list[float]
    session_rtf: float | None
    e2e_rtf: float | None
    needed_buffer: float | None
    stall_seconds: float | None
    stalls: int | None
    rebuffer_ratio: float | None
    switch_latencies: list[float]
    switch_playbacks: list[float]


def session_metrics(record: SessionRecord, buffer: float) -> SessionMetrics:
    """Return the metrics of a session whose player has a start-up buffer of `buffer` seconds."""
    chunks, start, sent = record.chunks, record.intended, record.sent
    end = record.polled[1] if record.polled else chunks[-1].at if chunks else None
    is_whole = record.outcome == "completed" and end is not None
    e2el = end - start if is_whole and end is not None else None
    pairs = list(zip(chunks, chunks[1:], strict=False))
    icls = [chunk.at - before.at for before, chunk in pairs]
    later = sum(chunk.frames for _, chunk in pairs)
    playback = play(chunks, record.fps, buffer) if chunks else None
    first = chunks[0].at if chunks else None
    return SessionMetrics(
        ttfc=None if first is None else first - start,
        e2el=e2el,
        service_ttfc=None if first is None or sent is None else first - sent,
        service_e2el=None if e2el is None or sent is None else e2el - (sent - start),
        accept_latency=None if record.accepted is None or sent is None else record.accepted - sent,
        send_lag=None if sent is None else sent - start,
        icls=icls,
        chunk_rtfs=[
            icl * record.fps / chunk.frames for icl, (_, chunk) in zip(icls, pairs, strict=True)
        ],
        session_rtf=(chunks[-1].at - chunks[0].at) * record.fps / later if later else None,
        e2e_rtf=None if e2el is None else e2el * record.fps / record.num_frames,
        needed_buffer=needed_buffer(chunks, record.fps) if chunks else None,
        stall_seconds=None if playback is None else playback.stall_seconds,
        stalls=None if playback is None else playback.stalls,
        rebuffer_ratio=None if playback is None else playback.rebuffer_ratio,
        switch_latencies=[
            switch.seen - switch.sent for switch in record.switches if switch.seen is not None
        ],
        switch_playbacks=switch_playbacks(record, buffer) if chunks else [],
    )


def switch_playbacks(record: SessionRecord, buffer: float) -> list[float]:
    """Return the seconds from each switch to when a player shows the first chunk of it."""
    shown = shown_at(record.chunks, record.fps, buffer)
    return [
        shown[switch.chunk] - switch.sent
        for switch in record.switches
        if switch.seen is not None and switch.chunk is not None
    ]
