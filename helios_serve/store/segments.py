"""MP4 segments of committed chunks, ready to be served."""

from collections.abc import Iterable
from pathlib import Path

from helios_serve.messages import Segment
from helios_serve.store.files import link_files, read_file, write_file
from helios_serve.store.folders import JobFolders
from helios_serve.store.jobs import StoredJob

HEADER = "init.mp4"


class SegmentStore(JobFolders):
    """Stores one header per video and one fragment per chunk."""

    def put(self, job_id: str, chunk: int, segment: Segment) -> None:
        """Store a chunk's segment. Durable when it returns."""
        header = self._header_path(job_id)
        if not header.exists():
            write_file(header, segment.header)
        write_file(self.path(job_id, chunk), segment.fragment)

    def share(self, job_id: str, parent_id: str, chunks: Iterable[int]) -> None:
        """Give a job its parent's header and `chunks`. Durable when it returns.

        The files are hard links: they never change, and each job can be deleted by itself.
        """
        names = [HEADER, *map(fragment_name, chunks)]
        link_files(self.folder(parent_id), self.folder(job_id), names)

    def header(self, job_id: str) -> bytes:
        """Return a video's header. Raises DamagedFileError if it does not exist."""
        return read_file(self._header_path(job_id))

    def fragment(self, job_id: str, chunk: int) -> bytes:
        """Return a chunk's fragment. Raises DamagedFileError if it does not exist."""
        return read_file(self.path(job_id, chunk))

    def path(self, job_id: str, chunk: int) -> Path:
        """Return the file of a chunk's fragment."""
        return self.folder(job_id) / fragment_name(chunk)

    def committed(self, job: StoredJob) -> set[str]:
        names = {fragment_name(chunk) for chunk in job.chunks}
        return names | {HEADER} if names else set()

    def _header_path(self, job_id: str) -> Path:
        return self.folder(job_id) / HEADER


def fragment_name(chunk: int) -> str:
    return f"{chunk:05d}.m4s"
