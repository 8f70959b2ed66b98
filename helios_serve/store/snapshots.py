"""Snapshots of sessions after their last committed chunk."""

import re

import msgspec

from helios_serve.messages import Snapshot, TensorData
from helios_serve.store.checked_files import read_struct, write_struct
from helios_serve.store.files import remove
from helios_serve.store.job_files import JobFolders, list_folder
from helios_serve.store.jobs import StoredJob

SNAPSHOT_NAME = re.compile(r"([0-9]{5,})\.msgpack")


class ResumePoint(msgspec.Struct, frozen=True):
    """The state from which a video resumes.

    `tail` holds the final latents of the chunk before `snapshot.chunk`. If the video ended inside
    that chunk, an extension decodes it again to deliver the frames that were cut off.
    """

    snapshot: Snapshot
    tail: TensorData | None = None


class SnapshotStore(JobFolders):
    """Stores snapshots, each in a file named by the chunk at which it resumes."""

    def put(self, job_id: str, resume_point: ResumePoint) -> None:
        """Store a resume point. Durable when it returns."""
        write_struct(self.folder(job_id) / snapshot_name(resume_point.snapshot.chunk), resume_point)

    def get(self, job_id: str, chunk: int) -> ResumePoint:
        """Return a resume point. Raises DamagedFileError if it is missing or damaged."""
        return read_struct(self.folder(job_id) / snapshot_name(chunk), ResumePoint)

    def delete_old(self, job: StoredJob, next_chunk: int) -> None:
        """Delete the snapshots that a job with this `next_chunk` no longer needs.

        It keeps the last one, the one before, in case the last one is damaged, and the one that it
        began with.
        """
        kept = {
            snapshot_name(chunk) for chunk in (next_chunk, next_chunk - 1, job.start_chunk or 0)
        }
        for path in list_folder(self.folder(job.id)):
            if path.name not in kept:
                remove(path)

    def chunks(self, job_id: str) -> list[int]:
        """Return the chunks of all snapshots of a job on disk, the newest first."""
        folder = self.folder(job_id)
        if not folder.is_dir():
            return []
        names = (SNAPSHOT_NAME.fullmatch(path.name) for path in list_folder(folder))
        return sorted((int(name[1]) for name in names if name), reverse=True)

    def committed(self, job: StoredJob) -> set[str]:
        if job.kept_chunk is None:
            return set()
        return {
            snapshot_name(chunk)
            for chunk in (job.kept_chunk, job.kept_chunk - 1, job.start_chunk or 0)
            if chunk >= 0
        }

    def uncommitted(self, job: StoredJob) -> set[str]:
        """Return the snapshot of an interrupted commit, and those that are no longer needed."""
        last = -1 if job.kept_chunk is None else job.kept_chunk
        return {snapshot_name(chunk) for chunk in (*range(last), job.next_chunk + 1)}


def snapshot_name(chunk: int) -> str:
    return f"{chunk:05d}.msgpack"
