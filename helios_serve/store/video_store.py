"""The store of jobs and their chunks, consistent after a crash at any instant."""

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack, closing
from datetime import date
from pathlib import Path
from threading import Lock
from weakref import WeakValueDictionary

from helios_serve.errors import HeliosError, InvalidRequestError, StorageError
from helios_serve.messages import Segment
from helios_serve.stage_seconds import NOTHING_SPENT, StageSeconds
from helios_serve.store.all_files import JobFiles, NewJob, Unfinished
from helios_serve.store.database import Database, Guard, allow
from helios_serve.store.disk import Ballast
from helios_serve.store.files import (
    DamagedFileError,
    locked,
    make_folder,
    make_private,
    sync_folder,
)
from helios_serve.store.job_files import JobFolders, list_folder
from helios_serve.store.job_repair import JobRepair
from helios_serve.store.jobs import EndStatus, JobStore, StoredJob
from helios_serve.store.lease import Lease, check_not_leased
from helios_serve.store.snapshots import ResumePoint
from helios_serve.store.usage import DayUsage
from helios_serve.video_request import VideoRequest

DATABASE = "jobs.sqlite3"


class VideoStore:
    """The persistent state of all jobs, in a folder that one process at a time may open.

    Segments, snapshots and references are files; the job's row in the database says which of them
    are committed. Files are therefore written before the row changes and deleted after it. Opening
    the store deletes what a crash leaves behind, and moves other files that no row refers to to
    `lost+found`.

    Thread-safe. Methods raise StorageError if the disk fails. With a `lease` the folder's lock may
    be held by a process that lost its own, and methods raise LeaseLostError once this one is lost.
    """

    def __init__(
        self,
        folder: Path,
        clock: Callable[[], float] = time.time,
        *,
        lease: Lease | None = None,
    ) -> None:
        self.folder = folder
        self.ballast = Ballast(folder)
        self.guard: Guard = allow if lease is None else lease.check
        self._locks: WeakValueDictionary[str, Lock] = WeakValueDictionary()
        self._locks_guard = Lock()
        with ExitStack() as opened:
            make_folder(folder)
            make_private(folder)
            if lease is None:
                check_not_leased(folder)
            after_lost_one = lease is not None and lease.predecessor is not None
            opened.enter_context(locked(folder, is_needed=not after_lost_one))
            self.files = JobFiles(folder)
            self._segments, self._snapshots = self.files.segments, self.files.snapshots
            check_database(self.folder, self.files.stores)
            self._jobs = opened.enter_context(
                closing(JobStore(folder / DATABASE, clock, guard=self.guard))
            )
            sync_folder(folder)
            self._repair = JobRepair(self._jobs, self.files)
            self._repair.reconcile(DATABASE)
            self._opened = opened.pop_all()

    def accept(
        self,
        request: VideoRequest,
        *,
        num_chunks: int,
        resume_point: ResumePoint | None = None,
        extends: str | None = None,
        frames_per_day: int | None = None,
    ) -> None:
        """Store one new job with `accept_all`."""
        job = NewJob(request, num_chunks, resume_point, extends)
        self.accept_all([job], frames_per_day=frames_per_day)

    def accept_all(self, jobs: Sequence[NewJob], *, frames_per_day: int | None = None) -> None:
        """Store new jobs of one tenant, all or none. Durable when it returns.

        Raises InvalidRequestError if an id is in use, a job exceeds its tenant's `frames_per_day`
        or the video that it extends was deleted, and CapacityError if the jobs exceed what is left
        of the frames today.
        """
        parents = {job.extends for job in jobs if job.extends is not None}
        with ExitStack() as held:
            for job_id in (*sorted(parents), *sorted(job.request.request_id for job in jobs)):
                held.enter_context(self.lock(job_id))
            for job in jobs:
                check_unused(self._jobs, job.request.request_id)
            written: list[str] = []
            try:
                rows = []
                for job in jobs:
                    written.append(job.request.request_id)
                    self.files.delete(written[-1])  # left by a job whose deletion failed
                    parent = None if job.extends is None else self._jobs.get(job.extends)
                    rows.append(self.files.begin(job, parent))
                self._jobs.add_all(rows, frames_per_day)
            except HeliosError:
                for job_id in written:
                    self.files.delete(job_id)
                raise

    def update_request(self, request: VideoRequest) -> None:
        """Replace the request of a job. Its reference does not change."""
        self._jobs.update_request(request)

    def commit(
        self,
        job_id: str,
        chunk: int,
        segment: Segment,
        resume_point: ResumePoint,
        spent: StageSeconds = NOTHING_SPENT,
    ) -> bool:
        """Commit a finished chunk and the state after it. Durable when it returns.

        Returns False, and stores nothing, if the job was deleted, cancelled or failed. Chunks must
        be committed in order; committing one again has no effect. After a StorageError the commit
        can be retried.
        """
        assert resume_point.snapshot.chunk == chunk + 1
        with self.lock(job_id):
            self.guard()  # before files are written
            job = self._jobs.get(job_id)
            if job is None or job.status in ("cancelled", "failed"):
                return False
            if chunk < job.next_chunk:
                return True
            assert chunk == job.next_chunk, f"chunk {chunk} in place of {job.next_chunk}"
            assert not job.is_finished, f"chunk {chunk} of a job that is {job.status}"
            self._segments.put(job_id, chunk, segment)
            self._snapshots.put(job_id, resume_point)
            self._jobs.advance(job, chunk, spent)
            self._snapshots.delete_old(job, chunk + 1)
            if job.is_endless:
                self._segments.delete_before(job_id, job.oldest_kept(chunk + 1))
            return True

    def finish(self, job_id: str, status: EndStatus, error: str | None = None) -> None:
        """End a job and keep its files. No effect if it was deleted or has ended already.

        Cancelling works on a full disk, too.
        """
        with self.lock(job_id):
            if status == "cancelled":
                self.ballast.spend(lambda: self._jobs.finish(job_id, status, error))
            else:
                self._jobs.finish(job_id, status, error)

    def end_early(self, job_id: str) -> EndStatus:
        """End a job before it is complete, and return its status.

        A video without an end is then complete, if it has a chunk; any other is cancelled.
        """
        job = self._jobs.get(job_id)
        is_complete = job is not None and job.is_endless and job.next_chunk > job.first_chunk
        status: EndStatus = "completed" if is_complete else "cancelled"
        with self.lock(job_id):
            self.ballast.spend(lambda: self._jobs.finish(job_id, status))
        return status

    def delete(self, job_id: str) -> None:
        """Delete a job, if it exists, and its files. It works on a full disk, too."""
        with self.lock(job_id):
            self.ballast.spend(lambda: self._jobs.delete(job_id))
            self.files.delete(job_id)
            self._jobs.forget_deleted(job_id)

    def job(self, job_id: str) -> StoredJob | None:
        return self._jobs.get(job_id)

    def request(self, job_id: str) -> VideoRequest | None:
        """Return the request of a job with its reference, so that it can be generated again."""
        with self.lock(job_id):
            job = self._jobs.get(job_id)
            return None if job is None else self.files.inputs.whole_request(job)

    def jobs(self) -> list[StoredJob]:
        """Return all jobs, in the order in which they were accepted."""
        return self._jobs.all()

    def page(
        self, tenant: str, after: str | None, limit: int, *, newest_first: bool
    ) -> list[StoredJob]:
        """Return up to `limit` jobs of a tenant ordered by age, starting after the job `after`."""
        return self._jobs.page(tenant, after, limit, newest_first=newest_first)

    def usage(self, tenant: str, first: date, last: date) -> list[DayUsage]:
        """Return a tenant's usage on each active day from `first` to `last`, inclusive."""
        return self._jobs.usage(tenant, first, last)

    def ended_before(self, limit: float) -> list[StoredJob]:
        """Return the jobs that ended before `limit`, in Unix seconds."""
        return self._jobs.ended_before(limit)

    def unfinished(self, exclude: Collection[str] = ()) -> list[Unfinished]:
        """Return the jobs that have not ended, in acceptance order, without ids in `exclude`.

        A job whose files are damaged is ended as failed and left out.
        """
        waiting = [job.id for job in self._jobs.unfinished() if job.id not in exclude]
        return [item for job_id in waiting if (item := self._recover(job_id)) is not None]

    def resume_point(self, job_id: str) -> ResumePoint | None:
        """Return a job's current resume point; None before its first chunk if it had none."""
        with self.lock(job_id):
            job = self._jobs.get(job_id)
            if job is None or job.kept_chunk is None:
                return None
            return self._snapshots.get(job_id, job.kept_chunk)

    def job_to_continue(self, job_id: str) -> tuple[StoredJob | None, ResumePoint | None]:
        """Return a job and its resume point, read at the same moment; None if missing."""
        with self.lock(job_id):
            job = self._jobs.get(job_id)
            if job is None or job.kept_chunk is None:
                return job, None
            return job, self._snapshots.get(job_id, job.kept_chunk)

    def segments(self, job_id: str) -> list[int]:
        """Return the committed chunks of a job."""
        job = self._jobs.get(job_id)
        return [] if job is None else list(job.chunks)

    def header(self, job_id: str) -> bytes | None:
        """Return the MP4 header of a video; None before its first chunk."""
        with self.lock(job_id):
            return self._segments.header(job_id) if self.segments(job_id) else None

    def fragment(self, job_id: str, chunk: int) -> bytes | None:
        """Return the MP4 fragment of a chunk; None if it is not committed."""
        with self.lock(job_id):
            if chunk not in self.segments(job_id):
                return None
            return self._segments.fragment(job_id, chunk)

    @property
    def database(self) -> Database:
        """The database, for tables that change in one transaction with the jobs."""
        return self._jobs.database

    def close(self) -> None:
        """Close the store and release its folder."""
        self._opened.close()

    def lock(self, job_id: str) -> Lock:
        """Return the job's lock, held while its row and files change. Jobs lock independently."""
        with self._locks_guard:
            return self._locks.setdefault(job_id, Lock())

    def _recover(self, job_id: str) -> Unfinished | None:
        with self.lock(job_id):
            job = self._jobs.get(job_id)
            if job is None or job.is_finished:
                return None
            try:
                return self.files.load(job)
            except DamagedFileError:  # since the store was opened
                if not self._repair.repair_or_fail(job):
                    return None
            repaired = self._jobs.get(job_id)
            return None if repaired is None else self.files.load(repaired)


def check_unused(jobs: JobStore, job_id: str) -> None:
    """Raise InvalidRequestError if a stored job has the id."""
    if jobs.get(job_id) is not None:
        raise InvalidRequestError(f"got request id {job_id!r}, which is in use", param="request_id")


def check_database(folder: Path, stores: Iterable[JobFolders]) -> None:
    """Raise StorageError if the database was lost: the sweep would move every video away."""
    path = folder / DATABASE
    if path.exists() and path.stat().st_size:
        return
    for files in stores:
        if list_folder(files.root):
            raise StorageError(
                f"{path} is missing or empty, but there are files in {files.root}: restore "
                "the database or move the files away"
            )
