"""Requests on their way into the engine and the store, and out again."""

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple

import msgspec

from helios_serve.engine.loop.continuation import fork_snapshot
from helios_serve.engine.loop.engine_core import EngineCore
from helios_serve.engine.loop.submission import Submission
from helios_serve.engine.requests.active_requests import ActiveRequests
from helios_serve.engine.requests.delivery import EventDelivery
from helios_serve.engine.requests.engine_thread import EngineThread
from helios_serve.engine.requests.model_pool import ModelPool, done
from helios_serve.engine.requests.stored_stream import CANCELLED
from helios_serve.errors import EngineDeadError, InvalidRequestError
from helios_serve.model_config import CHUNK_FRAMES
from helios_serve.store.jobs import StoredJob
from helios_serve.store.snapshots import ResumePoint
from helios_serve.store.video_store import VideoStore
from helios_serve.video_request import VideoRequest


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
        """Requests that are being added or dropped."""
        self._tasks: set[asyncio.Task[None]] = set()
        """Tasks that nothing awaits: the event loop itself holds them only weakly."""

    async def prepare(
        self,
        request: VideoRequest,
        *,
        resume_point: ResumePoint | None,
        extends: str | None,
        siblings: tuple[str, ...],
    ) -> Submission:
        """Check a request, for which no engine is needed, and find where it starts.

        Raises InvalidRequestError or NotAllowedError.
        """
        stored_from = None
        if extends is not None:
            assert self.store is not None, "without a store no video is kept to be extended"
            parent = await asyncio.to_thread(extended_parent, self.store, extends, request)
            request = with_model(request, parent.model)
            resume_point, stored_from = parent.resume_point, parent.first_chunk
        return self._checked(request, resume_point, siblings, stored_from, extends)

    async def forks(self, parent_id: str, requests: Sequence[VideoRequest]) -> list[Submission]:
        """Check requests that continue a video in their own ways, and find where they start.

        Each draws from a generator of its own. Raises InvalidRequestError or NotAllowedError.
        """
        if self.store is None:
            handle = self.active.find(parent_id)
            snapshot = await done(handle.thread.call(EngineCore.fork_point, parent_id))
            parent = Parent(handle.model, handle.seed, ResumePoint(snapshot))
        else:
            parent = await asyncio.to_thread(forked_parent, self.store, parent_id)
        point = parent.resume_point
        siblings = (parent_id, *(request.request_id for request in requests))
        return [
            self._checked(
                with_model(request, parent.model),
                ResumePoint(fork_snapshot(point.snapshot, parent.seed, index), point.tail),
                siblings,
                parent.first_chunk,
                None if self.store is None else parent_id,
            )
            for index, request in enumerate(requests)
        ]

    async def add(self, submission: Submission) -> None:
        """Reserve room in the engine, store the request if there is a store, and start it.

        The engine starts nothing that is not stored, and what is refused leaves nothing. Raises
        InvalidRequestError, CapacityError, StorageError or EngineDeadError. Must run to its end.
        """
        name, thread = submission.request_id, self.models.thread_of(submission.request.model)
        self.active.check_unused(name)
        with self.moving(name):
            await done(thread.call(EngineCore.reserve, submission))
            if self.store is not None:
                await self._store(submission, thread, self.store)
            self.active.add(submission, thread)
            try:
                await done(thread.call(EngineCore.start, submission))
            except BaseException as error:
                await self.withdraw(submission.request, str(error))
                raise

    async def withdraw(self, request: VideoRequest, why: str = CANCELLED) -> None:
        """Remove every trace of a request whose acceptance was not reported."""
        name = request.request_id
        with self.moving(name):
            self.active.end(name, why)
            await self._drop(name, self.models.thread_of(request.model))
            if self.store is not None:
                await asyncio.to_thread(self.store.delete, name)

    async def drop(self, request_id: str, thread: EngineThread) -> None:
        """Remove a request from the engine; what is stored of it stays, and may be resumed."""
        with self.moving(request_id):
            await self._drop(request_id, thread)

    def drop_later(self, request_id: str, why: str) -> None:
        """End a request for its readers at once, and `drop` it in a task."""
        handle = self.active.handles.get(request_id)
        if handle is None:
            return
        self.active.end(request_id, why)
        task = asyncio.create_task(self.drop(request_id, handle.thread))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @contextmanager
    def moving(self, request_id: str) -> Iterator[None]:
        """Within it `is_moving` holds: only the task that moves the request may change it."""
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

    async def _store(self, submission: Submission, thread: EngineThread, store: VideoStore) -> None:
        """Store a reserved request; releases the reservation if that fails."""
        request = submission.request
        try:
            await asyncio.to_thread(
                store.accept,
                request,
                num_chunks=submission.params.num_chunks,
                resume_point=submission.resume_point,
                extends=submission.extends,
                frames_per_day=self.models.tenant(request.tenant, request.model).frames_per_day,
            )
        except BaseException:
            await self._abort(request.request_id, thread)
            raise

    async def _drop(self, request_id: str, thread: EngineThread) -> None:
        self.delivery.stop(request_id)
        await self._abort(request_id, thread)
        self.delivery.forget(request_id)

    async def _abort(self, request_id: str, thread: EngineThread) -> None:
        with suppress(EngineDeadError):
            await done(thread.call(EngineCore.abort, request_id))


class Parent(NamedTuple):
    """What a video has of the one that it continues.

    Chunks from `first_chunk` on are stored, and shared with the parent; None if nothing is stored.
    """

    model: str | None
    seed: int
    resume_point: ResumePoint
    first_chunk: int | None = None


def extended_parent(store: VideoStore, parent_id: str, request: VideoRequest) -> Parent:
    """The end of the stored video `parent_id`, from where `request` continues.

    Raises InvalidRequestError if the video cannot be extended.
    """
    job, resume_point = store.job(parent_id), store.resume_point(parent_id)
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
    """The last stored chunk of a video, after which it is forked.

    Raises InvalidRequestError if there is none.
    """
    job, resume_point = store.job(parent_id), store.resume_point(parent_id)
    if job is None or resume_point is None or not job.chunks:
        raise InvalidRequestError(
            f"got {parent_id!r} to fork, expected a video with a finished chunk", param="video"
        )
    return stored_parent(job, resume_point)


def stored_parent(job: StoredJob, resume_point: ResumePoint) -> Parent:
    """A video cut inside its last chunk delivers that chunk again, whole: so nothing jumps."""
    params = job.request.params
    is_cut = job.next_chunk == job.num_chunks and params.num_frames % CHUNK_FRAMES != 0
    start = resume_point if is_cut else ResumePoint(resume_point.snapshot)
    return Parent(job.request.model, params.seed, start, job.first_chunk)


def with_model(request: VideoRequest, default: str | None) -> VideoRequest:
    """The request with its model named, so that the same one resumes it."""
    return request if request.model else msgspec.structs.replace(request, model=default)
