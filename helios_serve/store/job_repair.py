"""Repairs jobs whose row and files disagree."""

from helios_serve.logger import logger
from helios_serve.stage_seconds import NOTHING_SPENT
from helios_serve.store.all_files import JobFiles
from helios_serve.store.files import DamagedFileError
from helios_serve.store.jobs import JobStore, StoredJob
from helios_serve.store.lost_and_found import LostAndFound

DAMAGED = "the stored data of the video is damaged"
"""Error of a job that cannot be resumed."""
FROM_SNAPSHOTS = ("extension", "fork")
"""Relations of videos that do not begin with their own request."""


class JobRepair:
    """Finds the last chunk edge at which an unfinished job can resume.

    Files are checked by their checksums. A job goes back if chunks or snapshots are missing or
    damaged, and the chunks after the edge are generated again. It goes forward if the files have at
    least two more whole chunks than its row says, because then committed changes of the row were
    lost. A single one is left by a crash during a commit, and is generated again.
    """

    def __init__(self, jobs: JobStore, files: JobFiles) -> None:
        self.jobs = jobs
        self.files = files
        self.segments, self.snapshots = files.segments, files.snapshots

    def reconcile(self, table: str) -> None:
        """Make tables and folders agree when the store is opened.

        `table` is the name of the database file, for messages. Raises StorageError if the disk
        fails.
        """
        self.jobs.set_damaged_aside()
        for job in self.jobs.unfinished():
            self.repair_or_fail(job)
        jobs, deleted = self.jobs.all(), self.jobs.deleted()
        lost = LostAndFound(self.files.folder)
        for store in self.files.stores:
            store.sweep(jobs, deleted, lost)
        lost.report(table)
        for job_id in deleted:
            self.jobs.forget_deleted(job_id)

    def repair_or_fail(self, job: StoredJob) -> bool:
        """Repair a job. If it cannot be resumed, end it as failed and return False."""
        try:
            self.repair(job)
        except DamagedFileError as error:
            logger.error("job %s cannot be resumed: %s", job.id, error)
            self.jobs.finish(job.id, "failed", DAMAGED)
            return False
        return True

    def repair(self, job: StoredJob) -> None:
        """Set the next chunk of a job to the last one at which its files allow it to resume.

        Raises DamagedFileError if there is none, and StorageError if the disk fails.
        """
        whole = self.segments.whole_until(job)
        for chunk in self.snapshots.chunks(job.id):
            is_cut_commit = chunk == job.next_chunk + 1 and chunk != job.kept_chunk
            if is_cut_commit and self._can_stay(job, whole):
                continue
            next_chunk = self._edge_with(job, chunk, whole)
            if next_chunk is not None:
                self._stand(job, next_chunk, chunk)
                return
        self._start_again(job)

    def _can_stay(self, job: StoredJob, whole: int) -> bool:
        """Return whether a job can resume where its row says."""
        if whole < job.next_chunk or job.kept_chunk is None:
            return whole >= job.next_chunk
        try:
            self.snapshots.get(job.id, job.kept_chunk)
        except DamagedFileError:
            return False
        return True

    def _edge_with(self, job: StoredJob, chunk: int, whole: int) -> int | None:
        """Return the next chunk of a job that resumes from its snapshot at `chunk`, or None.

        All chunks before `whole` are whole. The snapshot's tail can be decoded again in place of
        the segment before it.
        """
        if chunk < job.first_chunk or chunk - 1 > whole:
            return None
        try:
            point = self.snapshots.get(job.id, chunk)
        except DamagedFileError as error:
            logger.error("job %s: %s", job.id, error)
            return None
        if chunk <= whole:
            return chunk
        return None if point.tail is None or chunk == job.first_chunk else chunk - 1

    def _stand(self, job: StoredJob, next_chunk: int, kept_chunk: int) -> None:
        if (next_chunk, kept_chunk) == (job.next_chunk, job.kept_chunk):
            return
        if next_chunk > job.next_chunk:
            logger.warning(
                "job %s: goes forward from chunk %d to %d, because the segments between them exist",
                job.id,
                job.next_chunk,
                next_chunk,
            )
            for chunk in range(job.next_chunk, next_chunk):
                self.jobs.advance(job, chunk, NOTHING_SPENT)
            if next_chunk == kept_chunk:
                return
        else:
            logger.warning(
                "job %s: goes back from chunk %d to %d", job.id, job.next_chunk, next_chunk
            )
        self.jobs.go_back(job.id, next_chunk, kept_chunk)

    def _start_again(self, job: StoredJob) -> None:
        """Restart a job from its request.

        Raises DamagedFileError if it began with a snapshot, or its reference is damaged.
        """
        is_own = job.start_chunk == 0 or (
            job.start_chunk is None and job.request.relation not in FROM_SNAPSHOTS
        )
        if not is_own or job.first_chunk != 0:
            raise DamagedFileError(f"no snapshot of job {job.id} can be used")
        self.files.inputs.whole_request(job)
        if job.next_chunk or job.kept_chunk is not None:
            logger.warning(
                "job %s: starts again at chunk 0, instead of chunk %d", job.id, job.next_chunk
            )
            self.jobs.go_back(job.id, 0, None)
