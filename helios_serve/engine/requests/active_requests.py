"""Running requests, and ended ones whose chunks were not all read."""

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import NamedTuple

from helios_serve.engine.loop.engine_core import EngineCore
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
from helios_serve.engine.requests.stored_stream import fetch_stored, stored_stream, unknown
from helios_serve.engine.requests.viewer import Viewer
from helios_serve.errors import (
    EngineDeadError,
    HeliosError,
    InvalidRequestError,
    RequestFailedError,
)
from helios_serve.metrics import Metrics
from helios_serve.model_config import frames_of_chunk, num_chunks
from helios_serve.options.sampling import PromptSwitch
from helios_serve.store.video_store import VideoStore
from helios_serve.video_request import VideoRequest

NO_CHUNK_LEFT = "the video has no chunk left for another prompt"
LEAD = "its reader is behind"


class AwaitedSwitch(NamedTuple):
    """A caller that waits to learn at which chunk a switch to `prompt` takes effect."""

    prompt: str
    answer: "asyncio.Future[PromptSwitch]"


class RequestHandle:
    """A running request: its engine, its stream, its reasons to pause and its awaited switches."""

    def __init__(
        self,
        request: VideoRequest,
        thread: EngineThread,
        stream: ChunkStream,
        counts: RequestMetrics,
    ) -> None:
        self.request_id = request.request_id
        self.model = request.model
        self.tenant = request.tenant
        self.num_frames = request.params.num_frames
        self.num_chunks = num_chunks(self.num_frames)
        self.seed = request.params.seed
        self.max_lead = request.max_lead_chunks
        self.viewer: Viewer | None = None
        if request.pacing == "media":
            self.viewer = Viewer(stream.read_chunk, request.params.fps, self._on_progress)
        self.is_endless = request.kept_chunks is not None
        self.seen_at = time.monotonic()
        """When it was last read or looked at."""
        self.thread = thread
        self.stream = stream
        self.counts = counts
        stream.on_read = self._on_read
        self._begun = stream.next_chunk
        self._holds: set[str] = set()
        self._switches: list[AwaitedSwitch] = []

    @property
    def is_made(self) -> bool:
        """Whether all chunks were published, so that only the end has not been reported."""
        return self.stream.next_chunk == self.num_chunks

    def hold(self, reason: str) -> "Future[None]":
        """Pause until `reason` is released. Raises EngineDeadError."""
        self._holds.add(reason)
        return self.thread.call(self._pause_or_resume)

    def release(self, reason: str) -> "Future[None]":
        """Remove a reason to pause, and resume if it was the last one. Raises EngineDeadError."""
        self._holds.discard(reason)
        return self.thread.call(self._pause_or_resume)

    def on_step(self, chunk: int) -> None:
        """Pause the video if it is too far ahead of its reader or viewer.

        Called in the engine's thread after a step of `chunk`. A worker may have another step
        planned by then, so a chunk beyond `max_lead` is finished only if it has at most two steps.
        """
        self.counts.step()
        self._begun = max(self._begun, chunk)
        if LEAD in self._holds or not self._is_ahead():
            return
        self._holds.add(LEAD)
        if not self._is_ahead():  # the reader caught up before the hold was set
            self._holds.discard(LEAD)
        self._pause_or_resume(self.thread.core)

    def await_switch(self, prompt: str) -> AwaitedSwitch:
        """Return a handle that awaits the switch to `prompt`.

        Its answer raises InvalidRequestError if no chunk is left for the prompt, and
        RequestFailedError if the request fails before that is known.
        """
        answer: asyncio.Future[PromptSwitch] = asyncio.get_running_loop().create_future()
        self._switches.append(switch := AwaitedSwitch(prompt, answer))
        return switch

    def forget_switch(self, switch: AwaitedSwitch) -> None:
        """Remove a switch whose caller no longer waits."""
        self._switches = [awaited for awaited in self._switches if awaited is not switch]

    def answer_switch(self, prompt: str, switch: PromptSwitch | None) -> None:
        """Answer the first caller that waits for `prompt`. None: no chunk is left for it."""
        for awaited in self._switches:
            if awaited.prompt == prompt:
                self.forget_switch(awaited)
                settle(awaited.answer, switch or no_chunk_left())
                return

    def end(self, error: str | None) -> None:
        self.stream.end(error)
        if self.viewer is not None:
            self.viewer.leave()
        for _, answer in self._switches:
            settle(answer, no_chunk_left() if error is None else RequestFailedError(error))
        self._switches.clear()

    def _on_read(self) -> None:
        """Handle the first read of a chunk."""
        if self.viewer is None:
            self._on_progress()
        else:
            chunk = self.stream.read_chunk - 1
            self.viewer.deliver(chunk, frames_of_chunk(self.num_frames, chunk).length)

    def _on_progress(self) -> None:
        """Resume the video if it was paused because its reader or viewer was behind."""
        if LEAD in self._holds and not self._is_ahead():
            with suppress(EngineDeadError):
                self.release(LEAD)

    def _pause_or_resume(self, core: EngineCore) -> None:
        """Apply the reasons to pause. Called in the engine's thread."""
        if self._holds:
            core.scheduler.pause(self.request_id)
        else:
            core.scheduler.resume(self.request_id)

    def _is_ahead(self) -> bool:
        if self.max_lead is None:
            return False
        seen = self.stream.read_chunk if self.viewer is None else self.viewer.next_chunk
        return self._begun >= seen + self.max_lead


def in_use(request_id: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"got request id {request_id!r}, which is in use", param="request_id"
    )


def no_chunk_left() -> InvalidRequestError:
    return InvalidRequestError(NO_CHUNK_LEFT, param="prompt")


def settle(answer: "asyncio.Future[PromptSwitch]", outcome: PromptSwitch | HeliosError) -> None:
    if answer.done():  # its caller was cancelled
        return
    if isinstance(outcome, HeliosError):
        answer.set_exception(outcome)
    else:
        answer.set_result(outcome)


class ActiveRequests:
    """The requests that receive events, by id."""

    def __init__(self, store: VideoStore | None, metrics: Metrics) -> None:
        self.store = store
        self.metrics = metrics
        self.handles: dict[str, RequestHandle] = {}
        self._unread: dict[str, ChunkStream] = {}
        """Streams of requests that ended and are not stored."""

    def add(self, submission: Submission, thread: EngineThread) -> None:
        name = submission.request_id
        fetch = None if self.store is None else partial(fetch_stored, self.store, name)
        kept = None if self.store is None else submission.request.kept_chunks
        stream = ChunkStream(name, submission.stored_from, submission.first_chunk, fetch, kept=kept)
        self._unread.pop(name, None)
        counts = RequestMetrics(self.metrics, submission.request.model or "", submission.request)
        self.handles[name] = RequestHandle(submission.request, thread, stream, counts)

    def count(self, tenant: str, model: str | None) -> int:
        """Return the number of a tenant's running requests for a model."""
        asked = (tenant, model)
        return sum((handle.tenant, handle.model) == asked for handle in self.handles.values())

    def check_unused(self, request_id: str) -> None:
        """Raise InvalidRequestError if a running request has the id."""
        if request_id in self.handles:
            raise in_use(request_id)

    def find(self, request_id: str) -> RequestHandle:
        """Return a running request. Raises InvalidRequestError if there is none with this id."""
        handle = self.handles.get(request_id)
        if handle is None:
            raise InvalidRequestError(
                f"got request id {request_id!r}, expected one that is running", param="request_id"
            )
        return handle

    async def stream(self, request_id: str) -> ChunkStream:
        """Return the stream of a request that is running, has ended, or waits to be resumed.

        Raises InvalidRequestError for an unknown request.
        """
        if (handle := self.handles.get(request_id)) is not None:
            return handle.stream
        if (unread := self._unread.get(request_id)) is not None:
            return unread
        if self.store is None:
            raise unknown(request_id)
        return await stored_stream(self.store, request_id)

    def on_thread(self, thread: EngineThread) -> Iterator[str]:
        """Yield the ids of one engine's requests. The caller may end each of them meanwhile."""
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
        """End a request. Unread chunks are kept unless they are stored."""
        stream = self.handles[request_id].stream
        self.end(request_id, error)
        if self.store is None and (stream.has_unread or error is not None):
            self._unread[request_id] = stream

    def end(self, request_id: str, error: str | None) -> None:
        """End a request if it is running."""
        handle = self.handles.pop(request_id, None)
        if handle is not None:
            handle.end(error)

    def forget(self, request_id: str) -> None:
        """Drop the unread chunks of an ended request."""
        self._unread.pop(request_id, None)
