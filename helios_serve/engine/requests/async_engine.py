"""The engine for asyncio: accepts requests for several models, and yields their chunks."""

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from types import TracebackType

from helios_serve.engine.loop.engine_core import EngineCore
from helios_serve.engine.loop.submission import Submission
from helios_serve.engine.requests.active_requests import ActiveRequests
from helios_serve.engine.requests.chunk_stream import VideoChunk
from helios_serve.engine.requests.delivery import EventDelivery
from helios_serve.engine.requests.engine_thread import EngineThread
from helios_serve.engine.requests.model_pool import ModelPool, done
from helios_serve.engine.requests.progress import Progress, progress_of, progress_of_some
from helios_serve.engine.requests.recovery import Recovery
from helios_serve.engine.requests.stored_stream import CANCELLED
from helios_serve.engine.requests.submissions import MakeForks, Submissions
from helios_serve.errors import CapacityError, EngineDeadError, RequestFailedError
from helios_serve.messages import Snapshot
from helios_serve.metrics import Metrics
from helios_serve.options.sampling import PromptSwitch
from helios_serve.spans import Spans
from helios_serve.store.snapshots import ResumePoint
from helios_serve.store.video_store import VideoStore
from helios_serve.video_request import VideoRequest

CLOSED = "the engine was closed"
ASKED_FOR = "the caller asked for it"


class AsyncEngine:
    """Generates videos with the models of a pool. An asynchronous context manager.

    With `store`, an accepted request survives a crash of the process: entering the context resumes
    unfinished requests, and a chunk is published only when it is stored. Leaving the context closes
    the cores, but neither the store nor `spans`.
    """

    def __init__(
        self,
        cores: Mapping[str, EngineCore],
        store: VideoStore | None = None,
        metrics: Metrics | None = None,
        aliases: Mapping[str, str] | None = None,
        *,
        spans: Spans | None = None,
    ) -> None:
        self.models = ModelPool(cores, aliases)
        self.store = store
        self.metrics = metrics or Metrics()
        self.spans = spans
        self._active = ActiveRequests(store, self.metrics)
        self._delivery = EventDelivery(self._active, store, spans)
        self._submissions = Submissions(self.models, self._active, self._delivery, store)
        self._recovery = (
            None if store is None else Recovery(self.models, self._active, self._submissions, store)
        )

    async def __aenter__(self) -> "AsyncEngine":
        self._delivery.open(on_storage_error=self._submissions.drop_later)
        self.models.open(self._delivery.on_events, self._delivery.on_engine_end)
        try:
            await self.resume_stored()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._close()

    async def generate(
        self, request: VideoRequest, *, continue_from: Snapshot | None = None
    ) -> AsyncGenerator[VideoChunk, None]:
        """Submit a request and yield its chunks. If the reader stops early, the request is aborted.

        Raises the errors of `submit` and `watch`.
        """
        try:
            await self.submit(request, continue_from=continue_from)
        except asyncio.CancelledError:
            await self.abort(request.request_id)
            raise
        try:
            async with aclosing(self.watch(request.request_id)) as chunks:
                async for chunk in chunks:
                    yield chunk
        except RequestFailedError:
            raise
        except BaseException:
            await self.abort(request.request_id)
            raise

    def count_unfinished(self, tenant: str, model: str | None) -> int:
        """Return the number of a tenant's videos of a model that are not finished."""
        return self._active.count(tenant, model)

    async def submit(
        self,
        request: VideoRequest,
        *,
        continue_from: Snapshot | None = None,
        extends: str | None = None,
        siblings: tuple[str, ...] = (),
    ) -> None:
        """Accept a request. Its video is generated even if no one reads it.

        With `continue_from` the video continues from that snapshot. With `extends` it continues a
        stored, finished video, and begins with that video's chunks. In both cases `num_frames`
        counts from the beginning of the earlier video. `siblings` are ids of requests that continue
        from the same snapshot: they share its history.

        With a store the request is durable when this returns. Raises InvalidRequestError,
        NotAllowedError, CapacityError, StorageError or EngineDeadError; then no trace of the
        request is left, and no reader has seen it. If the call is cancelled, the request may have
        been accepted if there is a store, and is withdrawn if there is none.
        """
        submission = await self._submissions.prepare(
            request,
            resume_point=None if continue_from is None else ResumePoint(continue_from),
            extends=extends,
            siblings=siblings,
        )
        await self._add([submission])

    async def fork(self, parent_id: str, make: MakeForks) -> None:
        """Accept several requests that continue one video, each in its own way.

        `make` is called with the chunk at which they start, and returns them. With a store, the
        video may be running or finished: the requests start after its last stored chunk, and begin
        with its chunks. Without one, the video must be running, and they start at its last chunk
        edge. `num_frames` counts from the beginning of the video. Raises the errors of `submit`;
        then none is accepted.
        """
        await self._add(await self._submissions.forks(parent_id, make))

    async def resume_stored(self) -> None:
        """Resume all stored jobs that have not ended and are not running.

        They are from an earlier process, or were stopped by a full disk or a lack of capacity.
        """
        if self._recovery is not None:
            await self._recovery.resume()

    async def watch(
        self, request_id: str, from_chunk: int | None = None
    ) -> AsyncGenerator[VideoChunk, None]:
        """Yield the chunks of a request as they are finished, from `from_chunk` or the first one.

        With a store, any number of readers get them, even after the video is complete. Without one,
        each chunk is kept until a reader has got it or the request is aborted. Raises
        RequestFailedError if the video ends early, and InvalidRequestError for an unknown request.
        """
        stream = await self._active.stream(request_id)
        try:
            async for chunk in stream.chunks(from_chunk):
                self.note_view(request_id)
                yield chunk
        finally:
            if stream.is_over and not stream.has_unread:
                self._active.forget(request_id)

    async def wait(self, request_id: str) -> None:
        """Wait until a request has ended, or has stopped running for another reason."""
        if (handle := self._active.handles.get(request_id)) is not None:
            await handle.stream.over()

    async def drain(self, timeout: float) -> bool:
        """Stop every session at its next chunk edge, and deliver the chunks that were finished.

        Returns whether all were finished within `timeout` seconds. Stored jobs resume later.
        """
        is_quiet = await self.models.drain(timeout)
        await self._delivery.flush()
        return is_quiet

    async def abort(self, request_id: str) -> None:
        """End a request at once. A finished or unknown one is not changed.

        The request is cancelled. A stored endless video is completed with the chunks that it has.
        """
        await self._submissions.settled(request_id)
        handle = self._active.handles.get(request_id)
        if handle is not None and handle.is_made:
            return
        is_complete = self.store is not None and handle is not None and handle.is_endless
        self._active.end(request_id, None if is_complete else CANCELLED)
        self._active.forget(request_id)
        status = "cancelled"
        if self.store is not None:
            status = await asyncio.to_thread(self.store.end_early, request_id)
        if handle is not None:
            handle.counts.end(status)
            await self._submissions.drop(request_id, handle.thread)

    def note_view(self, request_id: str) -> None:
        """Record that a client reads a video or asks for it; see `unwatched`."""
        if (handle := self._active.handles.get(request_id)) is not None:
            handle.seen_at = time.monotonic()

    def unwatched(self, seconds: float) -> list[str]:
        """Return the ids of endless videos that no client has viewed for `seconds`."""
        limit = time.monotonic() - seconds
        handles = self._active.handles.items()
        return [name for name, each in handles if each.is_endless and each.seen_at < limit]

    async def pause(self, request_id: str, reason: str = ASKED_FOR) -> None:
        """Pause a request. It continues when it was resumed for this reason and all others."""
        await done(self._active.find(request_id).hold(reason))

    async def resume(self, request_id: str, reason: str = ASKED_FOR) -> None:
        """Remove a reason for which a request is paused. Any other request is not changed."""
        await done(self._active.find(request_id).release(reason))

    def changes(self, request_id: str) -> asyncio.Event | None:
        """Return an event that is set at a running request's next chunk or end; None for others."""
        handle = self._active.handles.get(request_id)
        return None if handle is None else handle.stream.changed

    async def switch_prompt(
        self, request_id: str, prompt: str, transition_chunks: int | None = None
    ) -> PromptSwitch:
        """Switch a running video to another prompt. Returns the switch when its chunk is known.

        Raises InvalidRequestError if no chunk is left for it or the request is not running, and
        RequestFailedError if the request fails before that.
        """
        handle = self._active.find(request_id)
        switch = handle.await_switch(prompt)
        try:
            await done(
                handle.thread.call(EngineCore.switch_prompt, request_id, prompt, transition_chunks)
            )
            return await switch.answer
        finally:
            handle.forget_switch(switch)

    async def progress(self, request_id: str) -> Progress | None:
        """Return the progress of a request; None if it is not running."""
        handle = self._active.handles.get(request_id)
        if handle is None:
            return None
        with suppress(EngineDeadError):
            return await done(handle.thread.call(progress_of, request_id))
        return None

    async def progress_of_all(self, request_ids: Sequence[str]) -> dict[str, Progress]:
        """Return the progress of those requests that are running, with one call per engine."""
        by_thread: dict[EngineThread, list[str]] = {}
        for name in request_ids:
            if (handle := self._active.handles.get(name)) is not None:
                by_thread.setdefault(handle.thread, []).append(name)
        found: dict[str, Progress] = {}
        for thread, names in by_thread.items():
            with suppress(EngineDeadError):
                found |= await done(thread.call(progress_of_some, names))
        return found

    def close_readers(self) -> None:
        """End the streams of all active requests; stored chunks can still be read."""
        for name in list(self._active.handles):
            self._active.end(name, CLOSED)

    async def _add(self, submissions: Sequence[Submission]) -> None:
        """Add prepared requests, even if the caller is cancelled meanwhile.

        Without a store, the requests of a cancelled caller are withdrawn, because no one would read
        or abort them.
        """
        adding = asyncio.ensure_future(self._submissions.add(submissions))
        try:
            await asyncio.shield(adding)
        except CapacityError as error:
            model = submissions[0].request.model or ""
            self.metrics.rejections.labels(model, error.code).inc()
            raise
        except asyncio.CancelledError:
            await asyncio.wait((adding,))
            if self.store is None and not adding.cancelled() and adding.exception() is None:
                for submission in submissions:
                    await self._submissions.withdraw(submission.request)
            raise

    async def _close(self) -> None:
        """Close everything, even if closing a part fails. Then raise the first error."""
        errors = await self.models.close()
        await self._delivery.close()
        self.close_readers()
        for error in errors:
            raise error
