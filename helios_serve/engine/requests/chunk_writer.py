"""Stores events before they are published, so that no published event can be lost."""

import queue
import threading
from collections.abc import Callable
from typing import NamedTuple

from helios_serve.engine.loop.events import (
    ChunkReady,
    EngineEvent,
    PromptSwitched,
    RequestFailed,
    RequestFinished,
)
from helios_serve.errors import public_message
from helios_serve.logger import logger
from helios_serve.spans import Spans, Stopwatch
from helios_serve.store.snapshots import ResumePoint
from helios_serve.store.video_store import VideoStore

NUM_THREADS = 4


class ChunkStored(NamedTuple):
    """A chunk can be read from the store."""

    request_id: str
    chunk: int


RequestEvent = EngineEvent | ChunkStored


class Forget(NamedTuple):
    """Ends the events of a stopped request, so that its id can be used again."""

    request_id: str


Item = EngineEvent | Forget | threading.Event | None
"""An item in a thread's queue. The thread sets a threading.Event, and None ends it."""


class ChunkWriter:
    """Stores events and passes them to `publish`, those of each request in order.

    A chunk is published as ChunkStored. If storing fails, no later event of the request is stored
    or published, so that no gap arises, and `on_error` is called with the request's id and the
    reason. Both callbacks are called in threads.
    """

    def __init__(
        self,
        store: VideoStore,
        publish: Callable[[RequestEvent], None],
        on_error: Callable[[str, str], None],
        spans: Spans | None = None,
    ) -> None:
        self.store = store
        self.spans = spans
        self.publish = publish
        self.on_error = on_error
        self._stopped: set[str] = set()
        self._queues: list[queue.SimpleQueue[Item]] = []
        self._threads: list[threading.Thread] = []
        for number in range(NUM_THREADS):
            items: queue.SimpleQueue[Item] = queue.SimpleQueue()
            thread = threading.Thread(
                target=self._run, args=(items,), name=f"commit {number}", daemon=True
            )
            thread.start()
            self._queues.append(items)
            self._threads.append(thread)

    def put(self, event: EngineEvent | Forget) -> None:
        """Queue an event, which a thread stores. Never blocks."""
        self._queues[hash(event.request_id) % NUM_THREADS].put(event)

    def stop(self, request_id: str) -> None:
        """Drop all queued and later events of a request."""
        self._stopped.add(request_id)

    def forget(self, request_id: str) -> None:
        """Declare that a stopped request has no more events, so that its id can be used again."""
        self.put(Forget(request_id))

    def flush(self) -> None:
        """Wait until all events that are queued now are stored and published."""
        reached = [threading.Event() for _ in self._queues]
        for items, event in zip(self._queues, reached, strict=True):
            items.put(event)
        for event in reached:
            event.wait()

    def close(self) -> None:
        """Store the queued events, and end the threads."""
        for items in self._queues:
            items.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self, items: "queue.SimpleQueue[Item]") -> None:
        while (item := items.get()) is not None:
            if isinstance(item, threading.Event):
                item.set()
            elif isinstance(item, Forget):
                self._stopped.discard(item.request_id)
            elif item.request_id not in self._stopped:
                self._process(item)

    def _process(self, event: EngineEvent) -> None:
        try:
            stored = self._store(event)
            if stored is not None:
                self.publish(stored)
        except Exception as error:  # of any kind: the thread also serves other requests
            logger.error("cannot store an event of %s", event.request_id, exc_info=error)
            self._stopped.add(event.request_id)
            self.on_error(event.request_id, public_message(error))

    def _store(self, event: EngineEvent) -> RequestEvent | None:
        """Store an event. Returns the one to publish; None if the job was deleted or has ended."""
        match event:
            case ChunkReady(request_id=request_id, chunk=chunk):
                assert event.segment is not None, "a stored video is made in segments"
                start = ResumePoint(event.snapshot, event.latents)
                with Stopwatch() as watch:
                    is_stored = self.store.commit(
                        request_id, chunk, event.segment, start, event.spent
                    )
                if self.spans is not None and event.traceparent is not None:
                    self.spans.record(
                        "commit",
                        event.traceparent,
                        start=watch.start,
                        end=watch.end,
                        attributes={"helios.video.id": request_id, "helios.chunk": chunk},
                    )
                return ChunkStored(request_id, chunk) if is_stored else None
            case PromptSwitched(switch=switch) if switch is not None:
                self.store.update_request(event.request)
            case RequestFinished():
                self.store.finish(event.request_id, "completed")
            case RequestFailed():
                self.store.finish(event.request_id, "failed", event.message)
        return event
