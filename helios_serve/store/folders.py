"""One folder a job, under a name that its id cannot use to get elsewhere."""

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable
from hashlib import sha256
from pathlib import Path

from helios_serve.store.files import make_folder, remove, storage_errors
from helios_serve.store.jobs import StoredJob

PLAIN_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,99}")


def folder_name(job_id: str) -> str:
    """The id itself if it is plain, else its hash: ids come from users and may be anything.

    Capitals are not plain, because some file systems take A and a for the same.
    """
    if PLAIN_ID.fullmatch(job_id):
        return job_id
    return f"~{sha256(job_id.encode()).hexdigest()}"


class JobFolders(ABC):
    """Files of one kind of all jobs, below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        make_folder(root)

    def folder(self, job_id: str) -> Path:
        return self.root / folder_name(job_id)

    def delete(self, job_id: str) -> None:
        """Delete all of a job's files."""
        remove(self.folder(job_id))

    def sweep(self, jobs: Iterable[StoredJob]) -> None:
        """Delete all that a crash has left: files that are not `committed` for any of `jobs`."""
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
        """Names of the files that a job has according to its row."""


def list_folder(folder: Path) -> list[Path]:
    with storage_errors("list", folder):
        return list(folder.iterdir())
