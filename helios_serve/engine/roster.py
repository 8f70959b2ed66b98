"""Requests that are under way, and those that are over and were not read to their end."""

from collections.abc import Iterator
from functools import partial

from helios_serve.engine.events import (
    ChunkReady,
    EngineEvent,
    PromptSwitched,
    RequestFailed,
    RequestFinished,
)
from helios_serve.engine.feed import Feed, VideoChunk
from helios_serve.engine.recovery import Start
from helios_serve.engine.request_metrics import RequestMetrics
from helios_serve.engine.running import Running
from helios_serve.engine.stored_feed import fetch_stored, stored_feed, unknown
from helios_serve.engine.thread import EngineThread
from helios_serve.errors import InvalidRequestError
from helios_serve.metrics import Metrics
from helios_serve.store.video_store import VideoStore


class Roster:
    """Hands events on to those who read a request, or wait for something of it."""

    def __init__(self, store: VideoStore | None, metrics: Metrics) -> None:
        self.store = store
        self.metrics = metrics
        self.running: dict[str, Running] = {}
        self._unread: dict[str, Feed] = {}
        """Of requests that are over and not stored."""

    def add(self, start: Start, thread: EngineThread) -> Running:
        name = start.request.request_id
        fetch = None if self.store is None else partial(fetch_stored, self.store, name)
        feed = Feed(name, start.stored_from, start.first_chunk, fetch)
        self._unread.pop(name, None)
        counts = RequestMetrics(self.metrics, start.request.model or "", start.request)
        running = self.running[name] = Running(start.request, thread, feed, counts)
        return running

    def find(self, request_id: str) -> Running:
        """Raises InvalidRequestError for a request that is not under way."""
        running = self.running.get(request_id)
        if running is None:
            raise InvalidRequestError(
                f"got request id {request_id!r}, expected one that is running", param="request_id"
            )
        return running

    async def feed(self, request_id: str) -> Feed:
        """Also of a request that is over, or that waits to be taken up again.

        Raises InvalidRequestError for one that is unknown.
        """
        if (running := self.running.get(request_id)) is not None:
            return running.feed
        if (unread := self._unread.get(request_id)) is not None:
            return unread
        if self.store is None:
            raise unknown(request_id)
        return await stored_feed(self.store, request_id)

    def made_by(self, thread: EngineThread) -> Iterator[str]:
        """Names of requests; may be ended one by one."""
        for name, running in list(self.running.items()):
            if running.thread is thread:
                yield name

    def deliver(self, event: EngineEvent) -> None:
        running = self.running.get(event.request_id)
        if running is None:
            return
        match event:
            case ChunkReady():
                running.counts.chunk(event.chunk)
                running.feed.publish(
                    VideoChunk(
                        event.chunk, event.frames, event.segment, event.latents, event.snapshot
                    )
                )
            case PromptSwitched():
                running.answer_switch(event.prompt, event.switch)
            case RequestFinished():
                running.counts.end("completed")
                self.finish(event.request_id, None)
            case RequestFailed():
                running.counts.end("failed")
                self.finish(event.request_id, event.message)

    def finish(self, request_id: str, error: str | None) -> None:
        """End a request, and keep what nobody has read of it unless it is stored."""
        feed = self.running[request_id].feed
        self.end(request_id, error)
        if self.store is None and (feed.has_unread or error is not None):
            self._unread[request_id] = feed

    def end(self, request_id: str, error: str | None) -> None:
        """End a request, if it is under way."""
        running = self.running.pop(request_id, None)
        if running is not None:
            running.end(error)

    def forget(self, request_id: str) -> None:
        """Nobody will read what is left of a request that is over."""
        self._unread.pop(request_id, None)
