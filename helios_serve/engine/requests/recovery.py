"""Resumes stored jobs after a crash, a full disk or a lack of capacity."""

import asyncio
from collections.abc import Collection

from helios_serve.engine.loop.engine_core import EngineCore
from helios_serve.engine.loop.submission import Submission
from helios_serve.engine.requests.active_requests import ActiveRequests
from helios_serve.engine.requests.model_pool import ModelPool, done
from helios_serve.engine.requests.submissions import Submissions
from helios_serve.errors import CapacityError, EngineDeadError, HeliosError
from helios_serve.logger import logger
from helios_serve.model_config import HeliosConfig, num_chunks
from helios_serve.store.all_files import Unfinished
from helios_serve.store.snapshots import ResumePoint
from helios_serve.store.video_store import VideoStore


class Recovery:
    """Adds unfinished stored jobs to the engine again."""

    def __init__(
        self,
        models: ModelPool,
        active: ActiveRequests,
        submissions: Submissions,
        store: VideoStore,
    ) -> None:
        self.models = models
        self.active = active
        self.submissions = submissions
        self.store = store
        self._reported: set[str] = set()
        """Messages that were logged."""

    async def resume(self) -> None:
        """Resume all unfinished jobs that are not running, in the order of their acceptance."""
        busy = self._busy
        for job in await asyncio.to_thread(unfinished_jobs, self.store, busy):
            if job.request.request_id not in self._busy:
                await self._resume(job)

    @property
    def _busy(self) -> set[str]:
        return self.active.handles.keys() | self.submissions.being_moved

    async def _resume(self, job: Unfinished) -> None:
        """Resume a job, or leave it stored. A job that its model can never serve ends as failed."""
        name, model = job.request.request_id, self.models.name_of(job.request.model)
        if model not in self.models.cores:
            self._report(f"job {name} waits: its model {model!r} is not served")
            return
        thread = self.models.thread_of(model)
        try:
            submission = submission_of(job, thread.core.model_config)
            self.active.add(submission, thread)
            await done(thread.call(EngineCore.add, submission))
            return
        except EngineDeadError as error:
            reason = f"job {name} waits: {error}"
        except CapacityError as error:
            reason = f"job {name} waits for capacity: {error}"
        except HeliosError as error:
            reason = f"job {name} cannot be resumed: {error}"
            await asyncio.to_thread(self.store.finish, name, "failed", str(error))
        self._report(reason)
        self.active.end(name, reason)

    def _report(self, message: str) -> None:
        """Log a message once."""
        if message not in self._reported:
            self._reported.add(message)
            logger.warning("%s", message)


def unfinished_jobs(store: VideoStore, but: Collection[str]) -> list[Unfinished]:
    """Return all jobs with missing chunks, except those in `but`; complete the others."""
    jobs = []
    for job in store.unfinished(but):
        if job.next_chunk == num_chunks(job.request.params.num_frames):
            store.finish(job.request.request_id, "completed")
        else:
            jobs.append(job)
    return jobs


def submission_of(job: Unfinished, config: HeliosConfig) -> Submission:
    """Return the submission that resumes a job after its last committed chunk.

    Raises InvalidRequestError.
    """
    params = job.request.resolve(config)
    start = job.resume_point
    if start is None:
        return Submission(job.request, params, was_accepted=True)
    if job.next_chunk >= start.snapshot.chunk:  # the chunk of its tail is committed
        start = ResumePoint(start.snapshot)
    return Submission(job.request, params, start, stored_from=job.first_chunk, was_accepted=True)
