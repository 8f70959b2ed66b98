"""Snapshots of sessions after their last committed chunk."""

import msgspec

from helios_serve.messages import Snapshot, TensorData
from helios_serve.store.files import read_struct, remove, write_struct
from helios_serve.store.job_files import JobFolders, list_folder
from helios_serve.store.jobs import StoredJob


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

    def delete_others(self, job_id: str, keep_chunk: int) -> None:
        """Delete all snapshots of a job except one."""
        for path in list_folder(self.folder(job_id)):
            if path.name != snapshot_name(keep_chunk):
                remove(path)

    def committed(self, job: StoredJob) -> set[str]:
        return set() if job.kept_chunk is None else {snapshot_name(job.kept_chunk)}


def snapshot_name(chunk: int) -> str:
    return f"{chunk:05d}.msgpack"
