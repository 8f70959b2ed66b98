"""Folders with one subfolder per job, whose name is safe whatever the job's id contains."""

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable
from hashlib import sha256
from pathlib import Path

from helios_serve.store.files import make_folder, remove, storage_errors
from helios_serve.store.jobs import StoredJob

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

    def sweep(self, jobs: Iterable[StoredJob]) -> None:
        """Delete the files that a crash left behind: those that no job lists in `committed`."""
        by_folder = {folder_name(job.id): job for job in jobs}
        for folder in list_folder(self.root):
            job = by_folder.get(folder.name)
            names = self.committed(job) if job is not None else ()
            if not names:
                remove(folder)
                continue
            for path in list_folder(folder):
                if path.name not in names:
                    remove(path)

    @abstractmethod
    def committed(self, job: StoredJob) -> Collection[str]:
        """Return the names of the files that a job has according to its row."""


def list_folder(folder: Path) -> list[Path]:
    with storage_errors("list", folder):
        return list(folder.iterdir())
