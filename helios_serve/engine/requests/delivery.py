"""Delivery of events from the engines' threads to the event loop."""

import asyncio
from collections.abc import Callable
from typing import TypeVarTuple

from helios_serve.engine.loop.events import EngineEvent, StepTaken
from helios_serve.engine.requests.active_requests import ActiveRequests
from helios_serve.engine.requests.chunk_writer import ChunkWriter, RequestEvent
from helios_serve.engine.requests.engine_thread import EngineThread
from helios_serve.spans import Spans
from helios_serve.store.video_store import VideoStore

Arguments = TypeVarTuple("Arguments")


class EventDelivery:
    """Delivers events to active requests, after storing them if there is a store.

    Call public methods in the event loop's thread, except `on_events` and `on_engine_end`.
    """

    def __init__(
        self, active: ActiveRequests, store: VideoStore | None, spans: Spans | None = None
    ) -> None:
        self.active = active
        self.store = store
        self.spans = spans
        self._writer: ChunkWriter | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def open(self, on_storage_error: Callable[[str, str], None]) -> None:
        """Start. `on_storage_error` is called in the event loop, with a request id and a reason."""
        self._loop = asyncio.get_running_loop()
        if self.store is not None:

            def on_error(request_id: str, message: str) -> None:
                self._call_soon(on_storage_error, request_id, message)

            self._writer = ChunkWriter(self.store, self._publish, on_error, self.spans)

    async def close(self) -> None:
        """Store the queued events, and stop."""
        if self._writer is not None:
            await asyncio.to_thread(self._writer.close)

    async def flush(self) -> None:
        """Wait until all events so far are stored and delivered."""
        if self._writer is not None:
            await asyncio.to_thread(self._writer.flush)

    def stop(self, request_id: str) -> None:
        """Stop storing events of a request."""
        if self._writer is not None:
            self._writer.stop(request_id)

    def forget(self, request_id: str) -> None:
        """Declare that a stopped request has no more events, so that its id can be used again."""
        if self._writer is not None:
            self._writer.forget(request_id)

    def on_events(self, events: list[EngineEvent]) -> None:
        """Deliver the events of a step. Called in the engine's thread."""
        for event in events:
            if isinstance(event, StepTaken):
                if (handle := self.active.handles.get(event.request_id)) is not None:
                    handle.on_step(event.cursor.chunk)
            elif self._writer is None:
                self._publish(event)
            else:
                self._writer.put(event)

    def on_engine_end(self, thread: EngineThread, failure: str) -> None:
        """End the requests of an engine that stopped. Called in its thread.

        Stored jobs are not changed, so that they can be resumed.
        """

        def end_requests() -> None:
            for request_id in self.active.on_thread(thread):
                self.active.finish(request_id, failure)

        self._call_soon(end_requests)

    def _publish(self, event: RequestEvent) -> None:
        """Deliver an event in the event loop. May be called in any thread."""
        self._call_soon(self.active.deliver, event)

    def _call_soon(self, function: Callable[[*Arguments], None], *arguments: *Arguments) -> None:
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *arguments)
