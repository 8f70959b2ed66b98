"""Where each video stands behind its last committed chunk."""

import msgspec

from helios_serve.messages import Snapshot, TensorData
from helios_serve.store.files import read_struct, remove, write_struct
from helios_serve.store.folders import JobFolders, list_folder
from helios_serve.store.jobs import StoredJob


class ResumePoint(msgspec.Struct, frozen=True):
    """What a video goes on from.

    `tail` is the final latents of the chunk before `snapshot.chunk`: where the video's end was cut
    inside that chunk, an extension shows it again, whole.
    """

    snapshot: Snapshot
    tail: TensorData | None = None


class SnapshotStore(JobFolders):
    """One file a snapshot, named by the chunk at which it goes on."""

    def put(self, job_id: str, resume_point: ResumePoint) -> None:
        """Durable when it returns."""
        write_struct(self.folder(job_id) / snapshot_name(resume_point.snapshot.chunk), resume_point)

    def get(self, job_id: str, chunk: int) -> ResumePoint:
        """Raises StorageError if it is missing or damaged."""
        return read_struct(self.folder(job_id) / snapshot_name(chunk), ResumePoint)

    def delete_others(self, job_id: str, keep_chunk: int) -> None:
        """Delete all snapshots of a job but one."""
        for path in list_folder(self.folder(job_id)):
            if path.name != snapshot_name(keep_chunk):
                remove(path)

    def committed(self, job: StoredJob) -> set[str]:
        return set() if job.kept_chunk is None else {snapshot_name(job.kept_chunk)}


def snapshot_name(chunk: int) -> str:
    return f"{chunk:05d}.msgpack"
