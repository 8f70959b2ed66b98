"""Requests on their way into the engine and the store, and out again."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

import msgspec

from helios_serve.engine.loop.engine_core import EngineCore
from helios_serve.engine.loop.submission import Submission
from helios_serve.engine.requests.active_requests import ActiveRequests
from helios_serve.engine.requests.delivery import EventDelivery
from helios_serve.engine.requests.engine_thread import EngineThread
from helios_serve.engine.requests.model_pool import ModelPool, done
from helios_serve.engine.requests.stored_stream import CANCELLED
from helios_serve.errors import EngineDeadError, InvalidRequestError
from helios_serve.model_config import CHUNK_FRAMES
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
            parent = await asyncio.to_thread(parent_of, self.store, extends, request)
            request, resume_point, stored_from = parent
        if self.store is not None:
            request = msgspec.structs.replace(request, output="segment")
        request = with_model(request, self.models.default_model)
        params = self.models.check(request)
        return Submission(request, params, resume_point, siblings, stored_from, extends)

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
    """What an extension has of the video that it extends.

    `request` is the extension's, with its parent's model if it named none; chunks from
    `first_chunk` on are the parent's.
    """

    request: VideoRequest
    resume_point: ResumePoint
    first_chunk: int


def parent_of(store: VideoStore, parent_id: str, request: VideoRequest) -> Parent:
    """The end of the stored video `parent_id`, from where `request` continues.

    Where that video was cut inside its last chunk, the chunk is delivered again, whole, so that
    there is no jump. Raises InvalidRequestError if the video cannot be extended.
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
    was_cut = job.request.params.num_frames % CHUNK_FRAMES != 0
    start = resume_point if was_cut else ResumePoint(resume_point.snapshot)
    return Parent(with_model(request, job.request.model), start, job.first_chunk)


def with_model(request: VideoRequest, default: str | None) -> VideoRequest:
    """The request with its model named, so that the same one resumes it."""
    return request if request.model else msgspec.structs.replace(request, model=default)
