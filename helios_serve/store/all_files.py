"""The files of jobs: segments, snapshots and references."""

from pathlib import Path
from typing import NamedTuple

import msgspec

from helios_serve.errors import InvalidRequestError
from helios_serve.model_config import CHUNK_FRAMES
from helios_serve.store.job_files import InputStore, SegmentStore
from helios_serve.store.jobs import NewRow, StoredJob
from helios_serve.store.snapshots import ResumePoint, SnapshotStore
from helios_serve.video_request import VideoRequest


class Unfinished(msgspec.Struct, frozen=True):
    """A job to resume at `next_chunk`; chunks from `first_chunk` to the one before are committed.

    With a `resume_point` the session resumes from it, and `request` has no reference. Without one
    the job starts from its request. If `next_chunk` equals the number of chunks, only the job's end
    is missing. If it is one less than the resume point's chunk, its tail is delivered first.
    """

    request: VideoRequest
    resume_point: ResumePoint | None
    first_chunk: int
    next_chunk: int


class NewJob(NamedTuple):
    """A job to store; `num_chunks` counts those of the whole video.

    With a `resume_point` the job starts from it, and first delivers the chunk of its tail, if it
    has one. A job that `extends` another shares that job's earlier chunks.
    """

    request: VideoRequest
    num_chunks: int
    resume_point: ResumePoint | None = None
    extends: str | None = None


class JobFiles:
    """The segments, snapshots and references of all jobs, in subfolders of `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.segments = SegmentStore(folder / "segments")
        self.snapshots = SnapshotStore(folder / "snapshots")
        self.inputs = InputStore(folder / "inputs")
        self.stores = (self.segments, self.snapshots, self.inputs)

    def begin(self, new: NewJob, parent: StoredJob | None) -> NewRow:
        """Write the files that a new job begins with, and return its row.

        `parent` is the job that it extends. Raises InvalidRequestError if that was deleted.
        """
        request, num_chunks, resume_point, extends = new
        self.inputs.put(request)
        if extends is not None and parent is None:
            raise InvalidRequestError(
                f"got {extends!r} to continue, which was deleted meanwhile", param="video"
            )
        if resume_point is None:
            return NewRow(request, num_chunks)
        self.snapshots.put(request.request_id, resume_point)
        chunk = resume_point.snapshot.chunk
        first_chunk = next_chunk = chunk if resume_point.tail is None else chunk - 1
        frames_before = CHUNK_FRAMES * next_chunk
        if parent is not None and parent.first_chunk < next_chunk:
            first_chunk = parent.first_chunk
            frames_before = min(parent.request.params.num_frames, CHUNK_FRAMES * chunk)
            self.segments.share(request.request_id, parent.id, range(first_chunk, next_chunk))
        return NewRow(request, num_chunks, first_chunk, next_chunk, chunk, frames_before)

    def load(self, job: StoredJob) -> Unfinished:
        """Return the job with what it needs to resume. Raises DamagedFileError."""
        if job.kept_chunk is not None:
            resume_point = self.snapshots.get(job.id, job.kept_chunk)
            return Unfinished(job.request, resume_point, job.first_chunk, job.next_chunk)
        request = self.inputs.whole_request(job)
        return Unfinished(request, None, job.first_chunk, job.next_chunk)

    def delete(self, job_id: str) -> None:
        """Delete all files of a job."""
        for store in self.stores:
            store.delete(job_id)
