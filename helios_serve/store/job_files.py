"""Files of jobs on disk: one subfolder per job for its segments, and one for its reference."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import msgspec

from helios_serve.messages import Segment
from helios_serve.store.checked_files import (
    is_old_segment,
    read_checked,
    read_struct,
    write_checked,
    write_struct,
)
from helios_serve.store.files import (
    DamagedFileError,
    link_files,
    make_folder,
    remove,
    storage_errors,
)
from helios_serve.store.jobs import StoredJob
from helios_serve.store.lost_and_found import LostAndFound
from helios_serve.video_request import Frames, VideoRequest

HEADER, SUFFIX = "init.mp4", ".m4s"
MAX_LEFT = 1000
"""Segments that are older than all kept ones and may be left on disk, if deleting failed."""
MEDIA = "media.msgpack"
PLAIN_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,99}")


def folder_name(job_id: str) -> str:
    """Return the id itself if it is safe as a name, else its hash.

    Ids come from users and may be any text, such as `../x`. Capital letters count as unsafe
    because some file systems ignore case.
    """
    if PLAIN_ID.fullmatch(job_id):
        return job_id
    return f"~{sha256(job_id.encode()).hexdigest()}"


class JobFolders(ABC):
    """Base class of stores that keep one kind of file in a subfolder of `root` per job."""

    def __init__(self, root: Path) -> None:
        self.root = root
        make_folder(root)

    def folder(self, job_id: str) -> Path:
        return self.root / folder_name(job_id)

    def delete(self, job_id: str) -> None:
        """Delete all files of a job."""
        remove(self.folder(job_id))

    def sweep(self, jobs: Iterable[StoredJob], deleted: Iterable[str], lost: LostAndFound) -> None:
        """Keep only the files that are `committed`.

        Files of `deleted` jobs, temporary files and those that are `uncommitted` are deleted. All
        others are moved to `lost`: the table may have lost the rows that name them.
        """
        by_folder = {folder_name(job.id): job for job in jobs}
        gone = {folder_name(job_id) for job_id in deleted}
        for folder in list_folder(self.root):
            job = by_folder.get(folder.name)
            if job is not None:
                self._sweep_folder(folder, job, lost)
            elif folder.name in gone:
                remove(folder)
            else:
                lost.take(folder)

    def _sweep_folder(self, folder: Path, job: StoredJob, lost: LostAndFound) -> None:
        names, unneeded = self.committed(job), self.uncommitted(job)
        for path in list_folder(folder):
            if path.name in names:
                continue
            if path.name.startswith(".") or path.name in unneeded:
                remove(path)
            else:
                lost.take(path)
        if not list_folder(folder):
            remove(folder)

    @abstractmethod
    def committed(self, job: StoredJob) -> Collection[str]:
        """Return the names of the files that a job has according to its row."""

    @abstractmethod
    def uncommitted(self, job: StoredJob) -> Collection[str]:
        """Return the names of files that a crash during a commit or a cleanup may leave."""


def list_folder(folder: Path) -> list[Path]:
    with storage_errors("list", folder):
        return list(folder.iterdir())


class SegmentStore(JobFolders):
    """Stores one header per video and one fragment per chunk.

    `fetch` takes a job's id and the name of a file that is missing here, and returns its content
    if the job's files are kept elsewhere, else None.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.fetch: Callable[[str, str], bytes | None] = lambda job_id, name: None  # noqa: ARG005

    def put(self, job_id: str, chunk: int, segment: Segment) -> None:
        """Store a chunk's segment. Durable when it returns."""
        if not self._has_header(job_id, segment.header):
            write_checked(self._header_path(job_id), segment.header)
        write_checked(self.path(job_id, chunk), segment.fragment)

    def share(self, job_id: str, parent_id: str, chunks: Iterable[int]) -> None:
        """Give a job its parent's header and `chunks`. Durable when it returns.

        The files are hard links: they never change, and each job can be deleted by itself. Those
        that the parent keeps elsewhere are copied.
        """
        names = [HEADER, *map(fragment_name, chunks)]
        source, target = self.folder(parent_id), self.folder(job_id)
        link_files(source, target, [name for name in names if (source / name).exists()])
        for name in names:
            if not (source / name).exists():
                write_checked(target / name, self._read(parent_id, name))

    def header(self, job_id: str) -> bytes:
        """Return a video's header. Raises DamagedFileError if it is missing or damaged."""
        return self._read(job_id, HEADER)

    def fragment(self, job_id: str, chunk: int) -> bytes:
        """Return a chunk's fragment. Raises DamagedFileError if it is missing or damaged."""
        return self._read(job_id, fragment_name(chunk))

    def whole_until(self, job: StoredJob) -> int:
        """Return the first chunk of a job whose segment is missing or damaged.

        If the header is damaged, it is at most the last committed chunk, whose new segment brings a
        new header. Raises StorageError if the disk fails.
        """
        chunk = job.first_chunk
        with suppress(DamagedFileError):
            while chunk < job.num_chunks:
                self.fragment(job.id, chunk)
                chunk += 1
        try:
            self.header(job.id)
        except DamagedFileError:
            return min(chunk, max(job.first_chunk, job.next_chunk - 1))
        return chunk

    def path(self, job_id: str, chunk: int) -> Path:
        """Return the file of a chunk's fragment."""
        return self.folder(job_id) / fragment_name(chunk)

    def committed(self, job: StoredJob) -> set[str]:
        names = {fragment_name(chunk) for chunk in job.chunks}
        return names | {HEADER} if names else set()

    def uncommitted(self, job: StoredJob) -> set[str]:
        """Return the segments that an interrupted commit may have left.

        These are the segment of the next chunk, and, of an endless video, those to be deleted.
        """
        names = {HEADER, fragment_name(job.next_chunk)}
        if job.is_endless:
            oldest = max(0, job.first_chunk - MAX_LEFT)
            names |= {fragment_name(chunk) for chunk in range(oldest, job.first_chunk)}
        return names

    def delete_before(self, job_id: str, chunk: int) -> None:
        """Delete the segments of all chunks before `chunk`."""
        for path in list_folder(self.folder(job_id)):
            number = path.name.removesuffix(SUFFIX)
            if number != path.name and number.isdigit() and int(number) < chunk:
                remove(path)

    def _read(self, job_id: str, name: str) -> bytes:
        path = self.folder(job_id) / name
        data = None if path.exists() else self.fetch(job_id, name)
        return read_checked(path, is_old_segment) if data is None else data

    def _has_header(self, job_id: str, header: bytes) -> bool:
        try:
            return self.header(job_id) == header
        except DamagedFileError:
            return False

    def _header_path(self, job_id: str) -> Path:
        return self.folder(job_id) / HEADER


def fragment_name(chunk: int) -> str:
    return f"{chunk:05d}{SUFFIX}"


class Media(msgspec.Struct, frozen=True):
    """The reference of a request: the fields that `VideoRequest.without_media` removes."""

    image: Frames | None
    video: Frames | None


class InputStore(JobFolders):
    """Stores one file for each job with a reference (I2V, V2V)."""

    def put(self, request: VideoRequest) -> None:
        """Store the request's reference, if it has one. Durable when it returns."""
        if request.has_reference:
            media = Media(request.image, request.video)
            write_struct(self._path(request.request_id), media)

    def whole_request(self, job: StoredJob) -> VideoRequest:
        """Return a job's request with its reference. Raises DamagedFileError for a damaged file."""
        if not job.has_media:
            return job.request
        media = read_struct(self._path(job.id), Media)
        return msgspec.structs.replace(job.request, image=media.image, video=media.video)

    def committed(self, job: StoredJob) -> set[str]:
        return {MEDIA} if job.has_media else set()

    def uncommitted(self, job: StoredJob) -> set[str]:  # noqa: ARG002
        """Return nothing: no commit writes references."""
        return set()

    def _path(self, job_id: str) -> Path:
        return self.folder(job_id) / MEDIA
