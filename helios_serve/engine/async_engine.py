"""The engine for asyncio: requests in, videos out chunk by chunk, for several models at once."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import TypeVar

import msgspec

from helios_serve.config import WorkerConfig
from helios_serve.engine.committer import Committer
from helios_serve.engine.core import EngineCore, EngineStats
from helios_serve.engine.crew import WorkerReport
from helios_serve.engine.events import (
    ChunkReady,
    EngineEvent,
    PromptSwitched,
    RequestFailed,
    RequestFinished,
    StepTaken,
)
from helios_serve.engine.feed import Feed, VideoChunk
from helios_serve.engine.recovery import Start, extension, take_up, unfinished
from helios_serve.engine.running import Running
from helios_serve.engine.thread import EngineThread
from helios_serve.errors import InvalidRequestError, RequestFailedError
from helios_serve.messages import Segment, Snapshot
from helios_serve.model_config import num_chunks
from helios_serve.sampling_params import PromptSwitch, VideoRequest
from helios_serve.store.video_store import VideoStore

Result = TypeVar("Result")

CANCELLED = "the request was cancelled"


class AsyncEngine:
    """Models by name, each with its own workers; the first is the default.

    An asynchronous context. With `store` a request that was accepted survives a crash of the
    process: entering the context takes up what was not finished, and every chunk is on disk before
    anybody is told of it. It owns the cores, but not the store.
    """

    def __init__(self, cores: Mapping[str, EngineCore], store: VideoStore | None = None) -> None:
        self.cores = cores
        self.store = store
        self._threads: dict[str, EngineThread] = {}
        self._running: dict[str, Running] = {}
        self._committer: Committer | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Future[None]] = set()
        """Pauses under way: the loop itself holds them only weakly."""

    async def __aenter__(self) -> "AsyncEngine":
        self._loop = asyncio.get_running_loop()
        if self.store is not None:
            self._committer = Committer(self.store, self._tell, self._on_storage_error)
        self._threads = {
            name: EngineThread(core, self._on_events, partial(self._on_engine_end, name))
            for name, core in self.cores.items()
        }
        if self.store is not None:
            for start in await asyncio.to_thread(unfinished, self.store):
                await self._take_up(start, self.store)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for thread in self._threads.values():
            await asyncio.to_thread(thread.close)
        if self._committer is not None:
            await asyncio.to_thread(self._committer.close)
        for name in list(self._running):
            self._end(name, "the engine was closed")

    @property
    def failures(self) -> dict[str, str]:
        """Models that can make no more videos, and why."""
        failures = {name: thread.failure for name, thread in self._threads.items()}
        return {name: failure for name, failure in failures.items() if failure is not None}

    async def generate(
        self, request: VideoRequest, *, continue_from: Snapshot | None = None
    ) -> AsyncIterator[VideoChunk]:
        """Make a video and read it; ends it when the reader goes away before it is complete.

        Raises what `submit` and `watch` do.
        """
        await self.submit(request, continue_from=continue_from)
        is_complete = False
        try:
            async for chunk in self.watch(request.request_id):
                yield chunk
            is_complete = True
        finally:
            if not is_complete:
                await self.abort(request.request_id)

    async def submit(self, request: VideoRequest, *, continue_from: Snapshot | None = None) -> None:
        """Accept a request, which is made whether somebody reads it or not.

        With a store it is not lost any more when this returns. Raises InvalidRequestError,
        CapacityError, StorageError or EngineDeadError; then nothing is left of it.
        """
        await self._submit(Start(request, continue_from))

    async def extend(self, parent_id: str, request: VideoRequest) -> None:
        """Accept a request that goes on from the end of a stored video.

        Its `num_frames` count from the beginning of that one. Raises what `submit` does.
        """
        assert self.store is not None, "without a store nothing is kept to go on from"
        await self._submit(await asyncio.to_thread(extension, self.store, parent_id, request))

    async def fork(self, parent_id: str, requests: Sequence[VideoRequest]) -> None:
        """Accept requests that go on in their own ways from where a running video is.

        Their `num_frames` count from its beginning. Raises what `submit` does; then none of them
        is accepted.
        """
        thread = self._find(parent_id).thread
        snapshots = await self._call(
            thread, lambda core: core.fork_points(parent_id, len(requests))
        )
        kin = (parent_id, *(request.request_id for request in requests))
        accepted: list[str] = []
        try:
            for request, snapshot in zip(requests, snapshots, strict=True):
                await self._submit(Start(request, snapshot, kin=kin))
                accepted.append(request.request_id)
        except BaseException:
            for name in accepted:
                await self.abort(name)
            raise

    async def watch(
        self, request_id: str, from_chunk: int | None = None
    ) -> AsyncIterator[VideoChunk]:
        """The chunks of a request as they are finished, from its first one or `from_chunk` on.

        With a store any number may read, also when it is complete; without one, each chunk can be
        read once. Raises RequestFailedError where the video ends early, InvalidRequestError for an
        unknown request.
        """
        running = self._running.get(request_id)
        feed = running.feed if running is not None else await self._stored_feed(request_id)
        async for chunk in feed.chunks(from_chunk):
            yield chunk
            if running is not None:
                await self._mind_lead(request_id, running)

    async def abort(self, request_id: str) -> None:
        """End a request at once; one that is over or unknown is left as it is."""
        running = self._running.get(request_id)
        if running is None:
            return
        self._end(request_id, CANCELLED)
        if self.store is not None:
            await asyncio.to_thread(self.store.finish, request_id, "cancelled")
        if running.thread.failure is None:
            await self._call(running.thread, lambda core: core.abort(request_id))

    async def pause(self, request_id: str) -> None:
        """Make no more of a request until it is resumed."""
        await self._hold(request_id, self._find(request_id), "asked for")

    async def resume(self, request_id: str) -> None:
        await self._release(request_id, self._find(request_id), "asked for")

    async def switch_prompt(
        self, request_id: str, prompt: str, transition_chunks: int | None = None
    ) -> PromptSwitch:
        """Turn a running video to another prompt; returns when it is sure at which chunk.

        Raises InvalidRequestError where no chunk is left for it, or the request is not running.
        """
        running = self._find(request_id)
        switched = running.await_switch(prompt)
        try:
            await self._call(
                running.thread,
                lambda core: core.switch_prompt(request_id, prompt, transition_chunks),
            )
        except BaseException:
            switched.cancel()
            raise
        return await switched

    async def workers(self) -> dict[str, list[WorkerReport]]:
        """The workers of every model."""
        return {
            name: await self._call(thread, EngineCore.worker_reports)
            for name, thread in self._threads.items()
            if thread.failure is None
        }

    def worker_config(self, model: str | None = None) -> WorkerConfig:
        """What the first worker of a model runs."""
        return self._thread_of(model).core.config.workers[0]

    async def add_worker(self, model: str | None = None, config: WorkerConfig | None = None) -> str:
        """Start one more worker, like the first one of the model's if not told otherwise."""
        chosen = config or self.worker_config(model)
        return await self._call(self._thread_of(model), lambda core: core.add_worker(chosen))

    async def drain_worker(self, worker_id: str, model: str | None = None) -> None:
        """Let a worker end when its sessions have left it, at their next chunk edges.

        Raises InvalidRequestError for an unknown one, or the last one of its kind.
        """
        thread = self._thread_of(model)
        await self._call(thread, lambda core: core.drain_worker(worker_id))

    async def stats(self) -> dict[str, EngineStats]:
        """Counts of this moment, by model."""
        return {
            name: await self._call(thread, EngineCore.stats)
            for name, thread in self._threads.items()
            if thread.failure is None
        }

    async def _submit(self, start: Start) -> None:
        thread = self._thread_of(start.request.model)
        name = start.request.request_id
        if name in self._running:
            raise InvalidRequestError(
                f"got request id {name!r}, which is in use", param="request_id"
            )
        if self.store is None:
            self._register(start, thread)
            try:
                await self._call(thread, start.add_to)
            except BaseException:
                del self._running[name]
                raise
        else:
            await self._store_and_add(start, thread, self.store)

    async def _store_and_add(self, start: Start, thread: EngineThread, store: VideoStore) -> None:
        request = msgspec.structs.replace(start.request, output="segment")
        start, name = start._replace(request=request), request.request_id
        await self._call(thread, lambda core: core.check_request(request))
        length = num_chunks(request.params.num_frames)
        await asyncio.to_thread(store.accept, request, num_chunks=length, kept=start.kept)
        self._register(start, thread)
        try:
            await self._call(thread, start.add_to)
        except BaseException:
            del self._running[name]
            await asyncio.to_thread(store.delete, name)
            raise

    async def _take_up(self, start: Start, store: VideoStore) -> None:
        """Go on with a job that was accepted before this process began."""
        thread = self._thread_of(start.request.model)
        self._register(start, thread)
        if not await self._call(thread, lambda core: take_up(start, core, store)):
            del self._running[start.request.request_id]

    def _register(self, start: Start, thread: EngineThread) -> None:
        name = start.request.request_id
        fetch = None if self.store is None else partial(fetch_stored, self.store, name)
        feed = Feed(name, start.stored_from, start.first_chunk, fetch)
        self._running[name] = Running(start.request, thread, feed)

    def _thread_of(self, model: str | None) -> EngineThread:
        name = next(iter(self._threads)) if model is None else model
        if name not in self._threads:
            served = ", ".join(self._threads)
            raise InvalidRequestError(
                f"got model {name!r}, expected one of: {served}", param="model"
            )
        return self._threads[name]

    def _find(self, request_id: str) -> Running:
        running = self._running.get(request_id)
        if running is None:
            raise InvalidRequestError(
                f"got request id {request_id!r}, expected one that is running", param="request_id"
            )
        return running

    async def _stored_feed(self, request_id: str) -> Feed:
        """What there is of a request that is over."""
        job = None
        if self.store is not None:
            job = await asyncio.to_thread(self.store.job, request_id)
        if self.store is None or job is None:
            raise InvalidRequestError(
                f"got request id {request_id!r}, expected one that was accepted", param="request_id"
            )
        fetch = partial(fetch_stored, self.store, request_id)
        feed = Feed(request_id, job.first_chunk, job.next_chunk, fetch)
        feed.end(job.error or (CANCELLED if job.status == "cancelled" else None))
        return feed

    async def _call(self, thread: EngineThread, function: Callable[[EngineCore], Result]) -> Result:
        return await asyncio.wrap_future(thread.call(function))

    async def _mind_lead(self, request_id: str, running: Running) -> None:
        """Go on with a video whose reader has caught up with it."""
        if running.max_lead is not None and running.feed.lead < running.max_lead:
            await self._release(request_id, running, "lead")

    async def _hold(self, request_id: str, running: Running, reason: str) -> None:
        running.holds.add(reason)
        if len(running.holds) == 1 and running.thread.failure is None:
            await self._call(running.thread, lambda core: core.pause(request_id))

    async def _release(self, request_id: str, running: Running, reason: str) -> None:
        if reason not in running.holds:
            return
        running.holds.remove(reason)
        if not running.holds and running.thread.failure is None:
            await self._call(running.thread, lambda core: core.resume(request_id))

    def _on_events(self, events: list[EngineEvent]) -> None:
        """In an engine's thread."""
        for event in events:
            if self._committer is None or isinstance(event, StepTaken):
                self._tell(event)
            else:
                self._committer.put(event)

    def _tell(self, event: EngineEvent) -> None:
        """In any thread."""
        self._soon(partial(self._deliver, event))

    def _soon(self, function: Callable[[], None]) -> None:
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function)

    def _deliver(self, event: EngineEvent) -> None:
        running = self._running.get(event.request_id)
        if running is None:
            return
        match event:
            case StepTaken():
                running.feed.steps_taken += 1
            case ChunkReady():
                self._publish(running, event)
            case PromptSwitched():
                running.answer_switch(event.prompt, event.switch)
            case RequestFinished():
                self._end(event.request_id, None)
            case RequestFailed():
                self._end(event.request_id, event.message)

    def _publish(self, running: Running, event: ChunkReady) -> None:
        running.feed.publish(
            VideoChunk(event.chunk, event.frames, event.segment, event.latents, event.snapshot)
        )
        if running.max_lead is not None and running.feed.lead >= running.max_lead:
            hold = self._hold(event.request_id, running, "lead")
            self._tasks.add(task := asyncio.ensure_future(hold))
            task.add_done_callback(self._tasks.discard)

    def _end(self, request_id: str, error: str | None) -> None:
        running = self._running.pop(request_id, None)
        if running is None:
            return
        running.end(error)

    def _on_storage_error(self, request_id: str, message: str) -> None:
        """In a committer's thread. The job stays stored as it is, to be taken up another time."""

        def give_up() -> None:
            running = self._running.get(request_id)
            if running is not None:
                self._end(request_id, message)
                if running.thread.failure is None:
                    running.thread.call(lambda core: core.abort(request_id))

        self._soon(give_up)

    def _on_engine_end(self, model: str, failure: str) -> None:
        """In an engine's thread. Stored jobs stay as they are, to be taken up another time."""

        def give_up() -> None:
            thread = self._threads[model]
            for name, running in list(self._running.items()):
                if running.thread is thread:
                    self._end(name, failure)

        self._soon(give_up)


async def fetch_stored(store: VideoStore, request_id: str, index: int) -> VideoChunk:
    """A committed chunk; raises RequestFailedError where it was deleted meanwhile."""
    header, fragment = await asyncio.to_thread(
        lambda: (store.header(request_id), store.fragment(request_id, index))
    )
    if header is None or fragment is None:
        raise RequestFailedError(f"chunk {index} of {request_id!r} is not stored any more")
    return VideoChunk(index, segment=Segment(header, fragment))
