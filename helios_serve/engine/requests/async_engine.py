"""The engine for asyncio: requests in, videos out chunk by chunk, for several models at once."""

import asyncio
from collections import Counter
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import contextmanager, suppress
from functools import partial
from types import TracebackType
from typing import TypeVar

import msgspec

from helios_serve.core.admission import check_allowed
from helios_serve.engine.loop.engine_core import EngineCore
from helios_serve.engine.loop.events import EngineEvent, StepTaken
from helios_serve.engine.requests.active_requests import ActiveRequests
from helios_serve.engine.requests.chunk_stream import VideoChunk
from helios_serve.engine.requests.chunk_writer import ChunkWriter
from helios_serve.engine.requests.engine_thread import EngineThread
from helios_serve.engine.requests.model_pool import ModelPool, done
from helios_serve.engine.requests.progress import Progress, progress_of
from helios_serve.engine.requests.request_handle import RequestHandle
from helios_serve.engine.requests.resume import (
    Refusal,
    Submission,
    extension_of,
    resubmit,
    unfinished_submissions,
)
from helios_serve.engine.requests.stored_stream import CANCELLED
from helios_serve.errors import (
    CapacityError,
    EngineDeadError,
    InvalidRequestError,
    RequestFailedError,
)
from helios_serve.logger import logger
from helios_serve.messages import Snapshot
from helios_serve.metrics import Metrics
from helios_serve.model_config import num_chunks
from helios_serve.options.sampling import PromptSwitch
from helios_serve.store.snapshots import ResumePoint
from helios_serve.store.video_store import VideoStore
from helios_serve.video_request import VideoRequest

Result = TypeVar("Result")

CLOSED = "the engine was closed"
ASKED_FOR = "it was asked for"


class AsyncEngine(ModelPool):
    """Takes requests for the models of a fleet, and hands on what comes of them.

    An asynchronous context. With `store` a request that was accepted survives a crash of the
    process: entering the context takes up what was not finished, and every chunk is on disk before
    anybody is told of it. It owns the cores, but not the store.
    """

    def __init__(
        self,
        cores: Mapping[str, EngineCore],
        store: VideoStore | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        super().__init__(cores)
        self.store = store
        self.metrics = metrics or Metrics()
        self._active = ActiveRequests(store, self.metrics)
        self._writer: ChunkWriter | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._moving: Counter[str] = Counter()
        """Requests on their way in or out, which only those who move them may touch."""
        self._reported: set[str] = set()
        """Why jobs wait, as far as that was said."""
        self._tasks: set[asyncio.Task[None]] = set()
        """Under way without anybody who waits for them: the loop itself holds them only weakly."""

    async def __aenter__(self) -> "AsyncEngine":
        self._loop = asyncio.get_running_loop()
        if self.store is not None:
            self._writer = ChunkWriter(self.store, self._publish, self._on_storage_error)
        self._threads = {
            name: EngineThread(core, self._on_events, partial(self._on_engine_end, name))
            for name, core in self.cores.items()
        }
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
    ) -> AsyncIterator[VideoChunk]:
        """Make a video and read it; ends it when the reader goes away before it is complete.

        Raises what `submit` and `watch` do.
        """
        handle = await self._submit(Submission(request, resume_point_at(continue_from)))
        try:
            async for chunk in handle.stream.chunks():
                yield chunk
        except RequestFailedError:
            raise
        except BaseException:
            await self.abort(request.request_id)
            raise

    async def submit(self, request: VideoRequest, *, continue_from: Snapshot | None = None) -> None:
        """Accept a request, which is made whether somebody reads it or not.

        With a store it is not lost any more when this returns. Raises InvalidRequestError,
        NotAllowedError, CapacityError, StorageError or EngineDeadError; then, or if it is
        cancelled, nothing is left of it.
        """
        await self._submit(Submission(request, resume_point_at(continue_from)))

    async def extend(self, parent_id: str, request: VideoRequest) -> None:
        """Accept a request that goes on from the end of a stored video, and begins with it.

        Its `num_frames` count from the beginning of that one. Raises what `submit` does.
        """
        assert self.store is not None, "without a store nothing is kept to go on from"
        await self._submit(await asyncio.to_thread(extension_of, self.store, parent_id, request))

    async def fork(self, parent_id: str, requests: Sequence[VideoRequest]) -> None:
        """Accept requests that go on in their own ways from where a running video is.

        Their `num_frames` count from its beginning. Raises what `submit` does; then none of them
        is accepted.
        """
        parent = self._active.find(parent_id)
        snapshots = await self._call(
            parent.thread, lambda core: core.fork_points(parent_id, len(requests))
        )
        siblings = (parent_id, *(request.request_id for request in requests))
        accepted: list[VideoRequest] = []
        try:
            for request, snapshot in zip(requests, snapshots, strict=True):
                child = with_model(request, parent.model)
                await self._submit(Submission(child, ResumePoint(snapshot), siblings))
                accepted.append(child)
        except BaseException:
            for child in accepted:
                await self._withdraw(child.request_id, self._thread_of(child.model))
            raise

    async def resume_stored(self) -> None:
        """Go on with all stored jobs that have not ended and that nobody makes: those of an earlier
        process, and those that had to stop because the disk was full or there was no room."""
        if self.store is None:
            return
        busy = self._active.handles.keys() | self._moving.keys()
        for submission in await asyncio.to_thread(unfinished_submissions, self.store, busy):
            name = submission.request.request_id
            if name not in self._active.handles and not self._moving[name]:
                await self._resume_stored(submission, self.store)

    async def watch(
        self, request_id: str, from_chunk: int | None = None
    ) -> AsyncGenerator[VideoChunk, None]:
        """The chunks of a request as they are finished, from its first one or `from_chunk` on.

        With a store any number may read, also when it is complete; without one, each chunk is kept
        until it was read once, or the request aborted. Raises RequestFailedError where the video
        ends early, InvalidRequestError for an unknown request.
        """
        stream = await self._active.stream(request_id)
        try:
            async for chunk in stream.chunks(from_chunk):
                yield chunk
        finally:
            if stream.is_over and not stream.has_unread:
                self._active.forget(request_id)

    async def wait(self, request_id: str) -> None:
        """Returns when a request is over, or nobody makes it, however that came."""
        if (handle := self._active.handles.get(request_id)) is not None:
            await handle.stream.over()

    async def abort(self, request_id: str) -> None:
        """End a request at once; one that is over or unknown is left as it is."""
        handle = self._active.handles.get(request_id)
        if handle is not None and handle.is_made:
            return
        self._active.end(request_id, CANCELLED)
        self._active.forget(request_id)
        if self.store is not None:
            await asyncio.to_thread(self.store.finish, request_id, "cancelled")
        if handle is not None:
            handle.counts.end("cancelled")
            await self._drop(request_id, handle.thread)

    async def pause(self, request_id: str, reason: str = ASKED_FOR) -> None:
        """Make no more of a request until it is resumed for this reason, and any other."""
        await done(self._active.find(request_id).hold(reason))

    async def resume(self, request_id: str, reason: str = ASKED_FOR) -> None:
        """Go on with a paused request; any other is left as it is."""
        await done(self._active.find(request_id).release(reason))

    def changes(self, request_id: str) -> asyncio.Event | None:
        """Set when a running request has its next chunk, or ends; None for any other."""
        handle = self._active.handles.get(request_id)
        return None if handle is None else handle.stream.changed

    async def switch_prompt(
        self, request_id: str, prompt: str, transition_chunks: int | None = None
    ) -> PromptSwitch:
        """Turn a running video to another prompt; returns when it is sure at which chunk.

        Raises InvalidRequestError where no chunk is left for it, or the request is not running,
        and RequestFailedError where it ends before that is known.
        """
        handle = self._active.find(request_id)
        switch = handle.await_switch(prompt)
        try:
            await self._call(
                handle.thread,
                lambda core: core.switch_prompt(request_id, prompt, transition_chunks),
            )
            return await switch.answer
        finally:
            handle.forget_switch(switch)

    async def progress(self, request_id: str) -> Progress | None:
        """How far a request is; None for one that is over, or that nobody makes now."""
        handle = self._active.handles.get(request_id)
        if handle is None:
            return None
        with suppress(EngineDeadError):
            return await self._call(
                handle.thread, lambda core: progress_of(request_id, core.scheduler)
            )
        return None

    async def progress_of_all(self, request_ids: Sequence[str]) -> dict[str, Progress]:
        """As `progress`, of several at one moment; those without one are left out."""
        by_thread: dict[EngineThread, list[str]] = {}
        for name in request_ids:
            if (handle := self._active.handles.get(name)) is not None:
                by_thread.setdefault(handle.thread, []).append(name)
        found: dict[str, Progress] = {}
        for thread, names in by_thread.items():
            with suppress(EngineDeadError):
                found |= await self._call(thread, partial(progress_of_some, names))
        return found

    def close_readers(self) -> None:
        """Tell those who read or wait that no more comes; what is stored can be read on."""
        for name in list(self._active.handles):
            self._active.end(name, CLOSED)

    async def _submit(self, submission: Submission) -> RequestHandle:
        """What was begun is brought to its end, so that nothing is left half done."""
        thread = self._thread_of(submission.request.model)
        check_allowed(
            submission.request, self.tenant(submission.request.tenant, submission.request.model)
        )
        submission = submission._replace(
            request=with_model(submission.request, self._default_model)
        )
        adding = asyncio.ensure_future(self._add(submission, thread))
        try:
            return await asyncio.shield(adding)
        except CapacityError as error:
            self.metrics.rejections.labels(submission.request.model or "", error.code).inc()
            raise
        except asyncio.CancelledError:
            await asyncio.wait((adding,))
            if not adding.cancelled() and adding.exception() is None:
                await self._withdraw(submission.request.request_id, thread)
            raise

    async def _add(self, submission: Submission, thread: EngineThread) -> RequestHandle:
        name = submission.request.request_id
        if name in self._active.handles:
            raise InvalidRequestError(
                f"got request id {name!r}, which is in use", param="request_id"
            )
        with self._moving_request(name):
            if self.store is not None:
                submission = await self._accept(submission, thread, self.store)
            handle = self._active.add(submission, thread)
            try:
                await self._call(thread, submission.add_to)
            except BaseException as error:
                await self._withdraw(name, thread, str(error))
                raise
        return handle

    @contextmanager
    def _moving_request(self, request_id: str) -> Iterator[None]:
        self._moving[request_id] += 1
        try:
            yield
        finally:
            self._moving[request_id] -= 1
            self._moving += Counter()  # forget those at 0

    async def _accept(
        self, submission: Submission, thread: EngineThread, store: VideoStore
    ) -> Submission:
        request = msgspec.structs.replace(submission.request, output="segment")
        await self._call(thread, lambda core: core.check_request(request))
        await asyncio.to_thread(
            store.accept,
            request,
            num_chunks=num_chunks(request.params.num_frames),
            resume_point=submission.resume_point,
            extends=submission.extends,
            frames_per_day=self.tenant(request.tenant, request.model).frames_per_day,
        )
        return submission._replace(request=request)

    async def _withdraw(self, request_id: str, thread: EngineThread, why: str = CANCELLED) -> None:
        """Leave nothing of a request that nobody was told of."""
        with self._moving_request(request_id):
            self._active.end(request_id, why)
            await self._drop(request_id, thread)
            if self.store is not None:
                await asyncio.to_thread(self.store.delete, request_id)

    async def _drop(self, request_id: str, thread: EngineThread) -> None:
        """Let the engine forget a request, and what is on its way of it."""
        if self._writer is not None:
            self._writer.stop(request_id)
        with suppress(EngineDeadError):
            await self._call(thread, lambda core: core.abort(request_id))
        if self._writer is not None:
            self._writer.forget(request_id)

    async def _resume_stored(self, submission: Submission, store: VideoStore) -> None:
        """Go on with a job that was accepted before this process began."""
        name, model = submission.request.request_id, submission.request.model
        if model not in self._threads:
            self._report_once(f"job {name} waits for model {model!r}, which is not served now")
            return
        thread = self._threads[model]
        self._active.add(submission, thread)
        try:
            refusal = await self._call(thread, lambda core: resubmit(submission, core, store))
        except EngineDeadError as error:  # other models may go on
            refusal = Refusal(f"job {name} waits: {error}", is_over=False)
        if refusal is not None:
            self._report_once(refusal.reason)
            self._active.end(name, refusal.reason)

    def _report_once(self, message: str) -> None:
        if message not in self._reported:
            self._reported.add(message)
            logger.warning("%s", message)

    async def _close(self) -> None:
        """Readers are told in any case; then the first error is raised, if there was one."""
        closing = (asyncio.to_thread(thread.close) for thread in self._threads.values())
        outcomes = await asyncio.gather(*closing, return_exceptions=True)
        if self._writer is not None:
            await asyncio.to_thread(self._writer.close)
        self.close_readers()
        for outcome in outcomes:
            if outcome is not None:
                raise outcome

    def _on_events(self, events: list[EngineEvent]) -> None:
        """In an engine's thread."""
        for event in events:
            if isinstance(event, StepTaken):
                if (handle := self._active.handles.get(event.request_id)) is not None:
                    handle.on_step(event.cursor.chunk)
            elif self._writer is None:
                self._publish(event)
            else:
                self._writer.put(event)

    def _publish(self, event: EngineEvent) -> None:
        """In any thread."""
        self._call_soon(partial(self._active.deliver, event))

    def _call_soon(self, function: Callable[[], None]) -> None:
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function)

    def _on_storage_error(self, request_id: str, message: str) -> None:
        """In a committer's thread. The job stays stored as it is, to be taken up another time."""

        def give_up() -> None:
            handle = self._active.handles.get(request_id)
            if handle is not None:
                self._active.end(request_id, message)
                task = asyncio.create_task(self._let_go(request_id, handle.thread))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

        self._call_soon(give_up)

    async def _let_go(self, request_id: str, thread: EngineThread) -> None:
        """Drop a request that may be taken up again."""
        with self._moving_request(request_id):
            await self._drop(request_id, thread)

    def _on_engine_end(self, model: str, failure: str) -> None:
        """In an engine's thread. Stored jobs stay as they are, to be taken up another time."""

        def give_up() -> None:
            thread = self._threads[model]
            for name in self._active.on_thread(thread):
                self._active.finish(name, failure)

        self._call_soon(give_up)


def resume_point_at(snapshot: Snapshot | None) -> ResumePoint | None:
    return None if snapshot is None else ResumePoint(snapshot)


def with_model(request: VideoRequest, default: str | None) -> VideoRequest:
    """The request with its model named, so that it is taken up with the same one again."""
    return request if request.model else msgspec.structs.replace(request, model=default)


def progress_of_some(request_ids: Sequence[str], core: EngineCore) -> dict[str, Progress]:
    return {name: progress_of(name, core.scheduler) for name in request_ids}
