"""Requests that are under way, and those that are over and were not read to their end."""

from collections.abc import Iterator
from functools import partial

from helios_serve.engine.loop.events import (
    ChunkReady,
    EngineEvent,
    PromptSwitched,
    RequestFailed,
    RequestFinished,
)
from helios_serve.engine.observe.request_metrics import RequestMetrics
from helios_serve.engine.requests.chunk_stream import ChunkStream, VideoChunk
from helios_serve.engine.requests.engine_thread import EngineThread
from helios_serve.engine.requests.request_handle import RequestHandle
from helios_serve.engine.requests.resume import Submission
from helios_serve.engine.requests.stored_stream import fetch_stored, stored_stream, unknown
from helios_serve.errors import InvalidRequestError
from helios_serve.metrics import Metrics
from helios_serve.store.video_store import VideoStore


class ActiveRequests:
    """Hands events on to those who read a request, or wait for something of it."""

    def __init__(self, store: VideoStore | None, metrics: Metrics) -> None:
        self.store = store
        self.metrics = metrics
        self.handles: dict[str, RequestHandle] = {}
        self._unread: dict[str, ChunkStream] = {}
        """Of requests that are over and not stored."""

    def add(self, submission: Submission, thread: EngineThread) -> RequestHandle:
        name = submission.request.request_id
        fetch = None if self.store is None else partial(fetch_stored, self.store, name)
        stream = ChunkStream(name, submission.stored_from, submission.first_chunk, fetch)
        self._unread.pop(name, None)
        counts = RequestMetrics(self.metrics, submission.request.model or "", submission.request)
        handle = self.handles[name] = RequestHandle(submission.request, thread, stream, counts)
        return handle

    def find(self, request_id: str) -> RequestHandle:
        """Raises InvalidRequestError for a request that is not under way."""
        handle = self.handles.get(request_id)
        if handle is None:
            raise InvalidRequestError(
                f"got request id {request_id!r}, expected one that is running", param="request_id"
            )
        return handle

    async def stream(self, request_id: str) -> ChunkStream:
        """Also of a request that is over, or that waits to be taken up again.

        Raises InvalidRequestError for one that is unknown.
        """
        if (handle := self.handles.get(request_id)) is not None:
            return handle.stream
        if (unread := self._unread.get(request_id)) is not None:
            return unread
        if self.store is None:
            raise unknown(request_id)
        return await stored_stream(self.store, request_id)

    def on_thread(self, thread: EngineThread) -> Iterator[str]:
        """Names of requests; may be ended one by one."""
        for name, handle in list(self.handles.items()):
            if handle.thread is thread:
                yield name

    def deliver(self, event: EngineEvent) -> None:
        handle = self.handles.get(event.request_id)
        if handle is None:
            return
        match event:
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
        """End a request, and keep what nobody has read of it unless it is stored."""
        stream = self.handles[request_id].stream
        self.end(request_id, error)
        if self.store is None and (stream.has_unread or error is not None):
            self._unread[request_id] = stream

    def end(self, request_id: str, error: str | None) -> None:
        """End a request, if it is under way."""
        handle = self.handles.pop(request_id, None)
        if handle is not None:
            handle.end(error)

    def forget(self, request_id: str) -> None:
        """Nobody will read what is left of a request that is over."""
        self._unread.pop(request_id, None)
