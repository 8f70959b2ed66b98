"""Chunks of videos as segments of an MP4, ready to be served."""

from collections.abc import Iterable
from pathlib import Path

from helios_serve.messages import Segment
from helios_serve.store.files import link_files, read_file, write_file
from helios_serve.store.folders import JobFolders
from helios_serve.store.jobs import StoredJob

HEADER = "init.mp4"


class SegmentStore(JobFolders):
    """The header of each video, kept once, and a fragment a chunk."""

    def put(self, job_id: str, chunk: int, segment: Segment) -> None:
        """Durable when it returns."""
        header = self._header_path(job_id)
        if not header.exists():
            write_file(header, segment.header)
        write_file(self.path(job_id, chunk), segment.fragment)

    def share(self, job_id: str, parent_id: str, chunks: Iterable[int]) -> None:
        """Let a job have another one's header and chunks as its own; durable when it returns.

        Files never change, so both have the same ones; each may be deleted without the other.
        """
        names = [HEADER, *map(fragment_name, chunks)]
        link_files(self.folder(parent_id), self.folder(job_id), names)

    def header(self, job_id: str) -> bytes:
        """Raises StorageError if there is none."""
        return read_file(self._header_path(job_id))

    def fragment(self, job_id: str, chunk: int) -> bytes:
        """Raises StorageError if there is none."""
        return read_file(self.path(job_id, chunk))

    def path(self, job_id: str, chunk: int) -> Path:
        """Where the fragment of a chunk is kept."""
        return self.folder(job_id) / fragment_name(chunk)

    def committed(self, job: StoredJob) -> set[str]:
        names = {fragment_name(chunk) for chunk in job.chunks}
        return names | {HEADER} if names else set()

    def _header_path(self, job_id: str) -> Path:
        return self.folder(job_id) / HEADER


def fragment_name(chunk: int) -> str:
    return f"{chunk:05d}.m4s"
