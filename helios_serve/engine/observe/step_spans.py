"""Spans of what workers do for a video: waiting, encoding, denoising and decoding."""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from helios_serve.core.scheduler import Scheduler
from helios_serve.core.session import Session
from helios_serve.messages import (
    ChunkDecoded,
    ChunkRendered,
    InputsEncoded,
    SchedulerOutput,
    StepsDone,
)
from helios_serve.spans import SpanEvent, Spans, Value

SPARE = 64
"""Chunks of ended videos that may be kept until they are forgotten."""


class OpenChunk(NamedTuple):
    """A chunk that is being denoised: when it began, in Unix seconds, and its steps so far."""

    start: float
    steps: list[SpanEvent]


class HasSession(Protocol):
    @property
    def session(self) -> Session: ...


class StepSpans:
    """Observes an engine. Videos without a `traceparent` cost one look-up a step.

    A chunk's denoising is one span with an event for each step. The span `queue` is the time from
    the arrival of a video to its first step, encoding included.

    Args:
        spans: Takes the spans.
        videos: Unfinished videos of the engine, by id.
        clock: The engine's clock; `wall` gives Unix seconds.
    """

    def __init__(
        self,
        spans: Spans,
        videos: Mapping[str, HasSession],
        *,
        clock: Callable[[], float],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.spans = spans
        self.videos = videos
        self.clock = clock
        self.wall = wall
        self._plans: defaultdict[str, deque[SchedulerOutput]] = defaultdict(deque)
        self._chunks: dict[tuple[str, int], OpenChunk] = {}
        self._begun: set[str] = set()

    def plan(self, worker_id: str, plan: SchedulerOutput, scheduler: Scheduler) -> None:  # noqa: ARG002
        """A plan was sent to a worker."""
        self._plans[worker_id].append(plan)

    def steps(self, worker_id: str, event: StepsDone, scheduler: Scheduler) -> None:  # noqa: ARG002
        """The worker's oldest plan is done."""
        plan = self._plans[worker_id].popleft()
        end = self.wall()
        for step in plan.scheduled_steps:
            if (traceparent := self._traceparent(step.session_id)) is not None:
                start = end - event.seconds
                self._note_begin(step.session_id, traceparent, start)
                chunk, stage, number = step.cursor
                opened = self._chunks.setdefault((step.session_id, chunk), OpenChunk(start, []))
                details: dict[str, Value] = {
                    "helios.stage": stage,
                    "helios.step": number,
                    "helios.seconds": event.seconds,
                    "helios.batch": len(plan.scheduled_steps),
                }
                opened.steps.append(SpanEvent("step", end, details))
        for result in event.output.chunks:
            opened_chunk = self._chunks.pop((result.session_id, result.chunk), None)
            traceparent = self._traceparent(result.session_id)
            if opened_chunk is not None and traceparent is not None:
                self.spans.record(
                    "denoise",
                    traceparent,
                    start=opened_chunk.start,
                    end=end,
                    attributes=attributes(result.session_id, worker_id, chunk=result.chunk),
                    events=opened_chunk.steps,
                )

    def task(self, worker_id: str, event: InputsEncoded | ChunkDecoded) -> None:
        """An encode or decode task is done."""
        traceparent = self._traceparent(event.session_id)
        if traceparent is None:
            return
        is_decoded = isinstance(event, ChunkDecoded)
        chunk = event.chunk if isinstance(event, ChunkDecoded) else None
        end = self.wall()
        self.spans.record(
            "decode" if is_decoded else "encode",
            traceparent,
            start=end - event.seconds,
            end=end,
            attributes=attributes(event.session_id, worker_id, chunk=chunk),
            error=event.error,
        )

    def rendered(self, worker_id: str, event: ChunkRendered) -> None:
        """The span of a decode task contains the encoding of its frames."""

    def death(self, worker_id: str, reason: str) -> None:  # noqa: ARG002
        """The worker died, with its plans. Its chunks are made again from their first step."""
        for plan in self._plans.pop(worker_id, ()):
            for step in plan.scheduled_steps:
                self._chunks.pop((step.session_id, step.cursor.chunk), None)

    def _note_begin(self, video_id: str, traceparent: str, start: float) -> None:
        """Record the time that a video waited, at its first step."""
        if video_id in self._begun:
            return
        self._forget_ended()
        self._begun.add(video_id)
        waited = self.clock() - self.videos[video_id].session.clock.arrival
        arrival = min(self.wall() - waited, start)
        own = attributes(video_id, None, chunk=None)
        self.spans.record("queue", traceparent, start=arrival, end=start, attributes=own)

    def _forget_ended(self) -> None:
        """Forget videos that have ended, when they are many."""
        if len(self._begun) > 2 * len(self.videos) + SPARE:
            self._begun.intersection_update(self.videos)
            self._chunks = {
                key: item for key, item in self._chunks.items() if key[0] in self.videos
            }

    def _traceparent(self, video_id: str) -> str | None:
        video = self.videos.get(video_id)
        return None if video is None else video.session.request.traceparent


def attributes(video_id: str, worker_id: str | None, *, chunk: int | None) -> dict[str, Value]:
    """Return the attributes of a span; None is left out."""
    given = {"helios.video.id": video_id, "helios.worker": worker_id, "helios.chunk": chunk}
    return {name: value for name, value in given.items() if value is not None}
