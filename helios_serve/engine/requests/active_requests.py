"""Requests that are being made, and finished ones that were not read to their end."""

from collections.abc import Iterator
from functools import partial

from helios_serve.engine.loop.events import (
    ChunkReady,
    PromptSwitched,
    RequestFailed,
    RequestFinished,
)
from helios_serve.engine.loop.submission import Submission
from helios_serve.engine.observe.request_metrics import RequestMetrics
from helios_serve.engine.requests.chunk_stream import ChunkStream, VideoChunk
from helios_serve.engine.requests.chunk_writer import ChunkStored, RequestEvent
from helios_serve.engine.requests.engine_thread import EngineThread
from helios_serve.engine.requests.request_handle import RequestHandle
from helios_serve.engine.requests.stored_stream import fetch_stored, stored_stream, unknown
from helios_serve.errors import InvalidRequestError
from helios_serve.metrics import Metrics
from helios_serve.store.video_store import VideoStore


class ActiveRequests:
    """Requests by id, to which events are delivered."""

    def __init__(self, store: VideoStore | None, metrics: Metrics) -> None:
        self.store = store
        self.metrics = metrics
        self.handles: dict[str, RequestHandle] = {}
        self._unread: dict[str, ChunkStream] = {}
        """Streams of requests that ended and are not stored."""

    def add(self, submission: Submission, thread: EngineThread) -> None:
        name = submission.request_id
        fetch = None if self.store is None else partial(fetch_stored, self.store, name)
        stream = ChunkStream(name, submission.stored_from, submission.first_chunk, fetch)
        self._unread.pop(name, None)
        counts = RequestMetrics(self.metrics, submission.request.model or "", submission.request)
        self.handles[name] = RequestHandle(submission.request, thread, stream, counts)

    def check_unused(self, request_id: str) -> None:
        """Raise InvalidRequestError for the id of a request that is being made."""
        if request_id in self.handles:
            raise InvalidRequestError(
                f"got request id {request_id!r}, which is in use", param="request_id"
            )

    def find(self, request_id: str) -> RequestHandle:
        """Raises InvalidRequestError for a request that is not being made."""
        handle = self.handles.get(request_id)
        if handle is None:
            raise InvalidRequestError(
                f"got request id {request_id!r}, expected one that is running", param="request_id"
            )
        return handle

    async def stream(self, request_id: str) -> ChunkStream:
        """The chunks of a request that is being made, has ended, or waits to resume.

        Raises InvalidRequestError for an unknown one.
        """
        if (handle := self.handles.get(request_id)) is not None:
            return handle.stream
        if (unread := self._unread.get(request_id)) is not None:
            return unread
        if self.store is None:
            raise unknown(request_id)
        return await stored_stream(self.store, request_id)

    def on_thread(self, thread: EngineThread) -> Iterator[str]:
        """Ids of the requests of one engine; each may be ended while this runs."""
        for name, handle in list(self.handles.items()):
            if handle.thread is thread:
                yield name

    def deliver(self, event: RequestEvent) -> None:
        handle = self.handles.get(event.request_id)
        if handle is None:
            return
        match event:
            case ChunkStored():
                handle.counts.chunk(event.chunk)
                handle.stream.announce(event.chunk)
            case ChunkReady():
                handle.counts.chunk(event.chunk)
                handle.stream.publish(
                    VideoChunk(
                        event.chunk, event.frames, event.segment, event.latents, event.snapshot
                    )
                )
            case PromptSwitched():
                handle.answer_switch(event.prompt, event.switch)
            case RequestFinished():
                handle.counts.end("completed")
                self.finish(event.request_id, None)
            case RequestFailed():
                handle.counts.end("failed")
                self.finish(event.request_id, event.message)

    def finish(self, request_id: str, error: str | None) -> None:
        """End a request; keep what was not read of it unless it is stored."""
        stream = self.handles[request_id].stream
        self.end(request_id, error)
        if self.store is None and (stream.has_unread or error is not None):
            self._unread[request_id] = stream

    def end(self, request_id: str, error: str | None) -> None:
        """End a request, if it is being made."""
        handle = self.handles.pop(request_id, None)
        if handle is not None:
            handle.end(error)

    def forget(self, request_id: str) -> None:
        """Drop the unread chunks of a request that has ended."""
        self._unread.pop(request_id, None)
