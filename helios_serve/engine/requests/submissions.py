"""Adds requests to the engine and the store, and removes them."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import NamedTuple

import msgspec

from helios_serve.engine.loop.continuation import fork_seed, fork_snapshot
from helios_serve.engine.loop.engine_core import EngineCore
from helios_serve.engine.loop.submission import Submission
from helios_serve.engine.requests.active_requests import ActiveRequests, in_use
from helios_serve.engine.requests.delivery import EventDelivery
from helios_serve.engine.requests.engine_thread import EngineThread
from helios_serve.engine.requests.model_pool import ModelPool, done
from helios_serve.engine.requests.stored_stream import CANCELLED
from helios_serve.errors import EngineDeadError, InvalidRequestError, describe_error
from helios_serve.logger import logger
from helios_serve.model_config import CHUNK_FRAMES
from helios_serve.store.all_files import NewJob
from helios_serve.store.jobs import StoredJob
from helios_serve.store.snapshots import ResumePoint
from helios_serve.store.video_store import VideoStore
from helios_serve.video_request import VideoRequest

MakeForks = Callable[[int], Sequence[VideoRequest]]
"""Returns the requests that fork a video, given the chunk at which they start."""
ENDING_SECONDS, ENDING_PERIOD = 30.0, 0.02
"""Seconds to wait for an id whose previous request is still ending, and between checks of it."""


class Submissions:
    """Adds requests to the engine and the store, and withdraws them from both."""

    def __init__(
        self,
        models: ModelPool,
        active: ActiveRequests,
        delivery: EventDelivery,
        store: VideoStore | None,
    ) -> None:
        self.models = models
        self.active = active
        self.delivery = delivery
        self.store = store
        self._moving: Counter[str] = Counter()
        """Ids of requests that are being added or removed."""
        self._adding: dict[str, asyncio.Event] = {}
        """Requests that are being added. Each event is set when the request is accepted or refused.
        """
        self._tasks: set[asyncio.Task[None]] = set()
        """Background tasks. The event loop alone keeps only weak references."""

    async def prepare(
        self,
        request: VideoRequest,
        *,
        resume_point: ResumePoint | None,
        extends: str | None,
        siblings: tuple[str, ...],
    ) -> Submission:
        """Check a request without the engine, and find the chunk at which it starts.

        Raises InvalidRequestError or NotAllowedError.
        """
        stored_from = None
        if extends is not None:
            assert self.store is not None, "extending a video needs a store"
            parent = await asyncio.to_thread(extended_parent, self.store, extends, request)
            request = with_model(request, parent.model)
            resume_point, stored_from = parent.resume_point, parent.first_chunk
        return self._checked(request, resume_point, siblings, stored_from, extends)

    async def forks(self, parent_id: str, make: MakeForks) -> list[Submission]:
        """Make and check requests that continue one video, each in its own way.

        `make` is called with the chunk at which they start. Each request gets its own generator,
        and the seed of that as its `seed`. Raises InvalidRequestError or NotAllowedError.
        """
        if self.store is None:
            handle = self.active.find(parent_id)
            snapshot = await done(handle.thread.call(EngineCore.fork_point, parent_id))
            parent = Parent(handle.model, handle.seed, ResumePoint(snapshot))
        else:
            parent = await asyncio.to_thread(forked_parent, self.store, parent_id)
        snapshot, tail = parent.resume_point.snapshot, parent.resume_point.tail
        requests = make(snapshot.chunk)
        siblings = (parent_id, *(request.request_id for request in requests))
        submissions = []
        for request in requests:
            seed = fork_seed(parent.seed, snapshot.chunk, request.request_id)
            params = msgspec.structs.replace(request.params, seed=seed)
            child = msgspec.structs.replace(request, params=params)
            submissions.append(
                self._checked(
                    with_model(child, parent.model),
                    ResumePoint(fork_snapshot(snapshot, seed), tail),
                    siblings,
                    parent.first_chunk,
                    None if self.store is None else parent_id,
                )
            )
        return submissions

    async def add(self, submissions: Sequence[Submission]) -> None:
        """Reserve capacity for requests, store and start them: all or none.

        They are stored in one transaction. They must have the same tenant and model. No reader sees
        a request that is refused. A stored request is accepted: if the engine ends before it starts
        the request, the next engine resumes it. Raises InvalidRequestError, CapacityError,
        StorageError or EngineDeadError. Must not be cancelled.
        """
        with ExitStack() as moved:
            for submission in submissions:
                moved.enter_context(self._being_added(submission.request_id))
            await self._reserve(submissions)
            if self.store is not None:
                await self._store(submissions, self.store)
            for submission in submissions:
                self.active.add(submission, self._thread_of(submission))
            for submission in submissions:
                await self._start(submission)

    async def settled(self, request_id: str) -> None:
        """Wait until a request that is being added is accepted or refused."""
        if (added := self._adding.get(request_id)) is not None:
            await added.wait()

    async def withdraw(self, request: VideoRequest, why: str = CANCELLED) -> None:
        """Remove a request that is not stored, and whose acceptance was never reported."""
        name = request.request_id
        with self.moving(name):
            self.active.end(name, why)
            await self._drop(name, self.models.thread_of(request.model))

    async def drop(self, request_id: str, thread: EngineThread) -> None:
        """Remove a request from the engine. Its stored job stays, and may be resumed."""
        with self.moving(request_id):
            await self._drop(request_id, thread)

    def drop_later(self, request_id: str, why: str) -> None:
        """End a request for its readers at once, and `drop` it in the background."""
        handle = self.active.handles.get(request_id)
        if handle is None:
            return
        self.active.end(request_id, why)
        task = asyncio.create_task(self.drop(request_id, handle.thread))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @contextmanager
    def moving(self, request_id: str) -> Iterator[None]:
        """Mark a request as moving in the block: no other task may change it."""
        self._moving[request_id] += 1
        try:
            yield
        finally:
            self._moving[request_id] -= 1
            self._moving += Counter()  # removes those at 0

    @property
    def being_moved(self) -> set[str]:
        return set(self._moving)

    def _checked(
        self,
        request: VideoRequest,
        resume_point: ResumePoint | None,
        siblings: tuple[str, ...],
        stored_from: int | None,
        extends: str | None,
    ) -> Submission:
        if self.store is not None:
            request = msgspec.structs.replace(request, output="segment")
        request = with_model(request, self.models.default_model)
        params = self.models.check(request)
        return Submission(request, params, resume_point, siblings, stored_from, extends)

    async def _reserve(self, submissions: Sequence[Submission]) -> None:
        """Reserve capacity for all requests. If one is refused, the others are released."""
        reserved: list[Submission] = []
        try:
            for submission in submissions:
                self.active.check_unused(submission.request_id)
                await self._reserve_one(submission)
                reserved.append(submission)
        except BaseException:
            await self._release(reserved)
            raise

    async def _reserve_one(self, submission: Submission) -> None:
        """Reserve capacity for a request. Waits while an earlier one with its id is ending."""
        thread, name = self._thread_of(submission), submission.request_id
        deadline = time.monotonic() + ENDING_SECONDS
        while True:
            try:
                await done(thread.call(EngineCore.reserve, submission))
                return
            except InvalidRequestError as error:
                if error.param != "request_id" or time.monotonic() > deadline:
                    raise
                if not await done(thread.call(EngineCore.is_ending, name)):
                    raise
            await asyncio.sleep(ENDING_PERIOD)

    async def _store(self, submissions: Sequence[Submission], store: VideoStore) -> None:
        """Store reserved requests. If that fails, they are released."""
        if not submissions:
            return
        first = submissions[0].request
        jobs = [
            NewJob(item.request, item.params.num_chunks, item.resume_point, item.extends)
            for item in submissions
        ]
        limit = self.models.tenant(first.tenant, first.model).frames_per_day
        try:
            await asyncio.to_thread(store.accept_all, jobs, frames_per_day=limit)
        except BaseException:
            await self._release(submissions)
            raise

    async def _start(self, submission: Submission) -> None:
        """Start a request. A stored one that cannot be started is resumed later."""
        name = submission.request_id
        try:
            await done(self._thread_of(submission).call(EngineCore.start, submission))
        except Exception as error:
            if self.store is None:
                await self.withdraw(submission.request, describe_error(error))
                raise
            logger.error("job %s resumes at the next start: %s", name, describe_error(error))
            self.active.end(name, describe_error(error))

    async def _release(self, submissions: Sequence[Submission]) -> None:
        for submission in submissions:
            await self._abort(submission.request_id, self._thread_of(submission))

    @contextmanager
    def _being_added(self, request_id: str) -> Iterator[None]:
        """Mark a request as being added in the block, so that it is moving and `settled` waits.

        Raises InvalidRequestError if it is being added already.
        """
        if request_id in self._adding:
            raise in_use(request_id)
        self._adding[request_id] = asyncio.Event()
        try:
            with self.moving(request_id):
                yield
        finally:
            self._adding.pop(request_id).set()

    def _thread_of(self, submission: Submission) -> EngineThread:
        return self.models.thread_of(submission.request.model)

    async def _drop(self, request_id: str, thread: EngineThread) -> None:
        self.delivery.stop(request_id)
        await self._abort(request_id, thread)
        self.delivery.forget(request_id)

    async def _abort(self, request_id: str, thread: EngineThread) -> None:
        with suppress(EngineDeadError):
            await done(thread.call(EngineCore.abort, request_id))


class Parent(NamedTuple):
    """The video that another one continues: its model, its seed and the state to resume from.

    `first_chunk` is the first of its stored chunks, which the continuation shares; None without a
    store.
    """

    model: str | None
    seed: int
    resume_point: ResumePoint
    first_chunk: int | None = None


def extended_parent(store: VideoStore, parent_id: str, request: VideoRequest) -> Parent:
    """Return the stored, finished video `parent_id`, at whose end `request` continues.

    Raises InvalidRequestError if the video cannot be extended.
    """
    job, resume_point = store.job_to_continue(parent_id)
    if job is None or resume_point is None or job.next_chunk < job.num_chunks:
        raise InvalidRequestError(
            f"got {parent_id!r} to extend, expected a finished video", param="video"
        )
    if request.params.fps != job.request.params.fps:
        raise InvalidRequestError(
            f"got fps {request.params.fps}, expected {job.request.params.fps} as in the video that "
            "is extended",
            param="fps",
        )
    return stored_parent(job, resume_point)


def forked_parent(store: VideoStore, parent_id: str) -> Parent:
    """Return the stored video `parent_id`, to be forked after its last chunk.

    Raises InvalidRequestError if it has no chunk.
    """
    job, resume_point = store.job_to_continue(parent_id)
    if job is None or resume_point is None or not job.chunks:
        raise InvalidRequestError(
            f"got {parent_id!r} to fork, expected a video with a finished chunk", param="video"
        )
    return stored_parent(job, resume_point)


def stored_parent(job: StoredJob, resume_point: ResumePoint) -> Parent:
    """Return a job as a parent. If it ends inside a chunk, that chunk is delivered again."""
    params = job.request.params
    is_cut = job.next_chunk == job.num_chunks and params.num_frames % CHUNK_FRAMES != 0
    start = resume_point if is_cut else ResumePoint(resume_point.snapshot)
    return Parent(job.request.model, params.seed, start, job.first_chunk)


def with_model(request: VideoRequest, default: str | None) -> VideoRequest:
    """Return the request with an explicit model, so that the same model resumes it."""
    return request if request.model else msgspec.structs.replace(request, model=default)
