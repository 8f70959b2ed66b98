"""Plain MP4 files and images of finished videos, created from their segments on first use."""

from collections.abc import Callable
from errno import EDQUOT, EFBIG, ENOSPC
from pathlib import Path
from threading import Lock
from weakref import WeakValueDictionary

from helios_serve.errors import RequestFailedError, StorageError
from helios_serve.media.mp4 import defragment
from helios_serve.media.pictures import spritesheet, thumbnail
from helios_serve.store.files import FILE_MODE, create_file, make_folder
from helios_serve.store.jobs import StoredJob
from helios_serve.store.video_store import VideoStore

MEDIA_TYPES = {"video": "video/mp4", "thumbnail": "image/webp", "spritesheet": "image/jpeg"}
NO_ROOM = (ENOSPC, EDQUOT, EFBIG)
"""Numbers of the errors of a full disk."""
SUFFIXES = {"video": ".mp4", "thumbnail": ".webp", "spritesheet": ".jpg"}


class FinishedFiles:
    """A cache of files that can be recreated from `store` at any time.

    The folder is emptied at the start.
    """

    def __init__(self, folder: Path, store: VideoStore) -> None:
        self.folder = folder
        self.store = store
        self._locks: WeakValueDictionary[str, Lock] = WeakValueDictionary()
        self._guard = Lock()
        make_folder(folder)
        for left in folder.iterdir():
            left.unlink()

    def get(self, job: StoredJob, variant: str) -> Path:
        """Return the path of a finished video's file, and create it if needed.

        `variant` is a key of MEDIA_TYPES. The MP4 has its index at the front, so that playback can
        start before the download is complete. Raises RequestFailedError if the video is deleted
        meanwhile, DamagedFileError if a stored chunk is damaged, StorageError if the disk fails.
        """
        path = self.folder / f"{job.id}{SUFFIXES[variant]}"
        with self._lock(job.id):
            if not path.exists():
                try:
                    self._make(job, path, variant)
                except OSError as error:
                    if error.errno not in NO_ROOM:  # FFmpeg's errors are OSErrors, too
                        raise
                    raise StorageError(f"cannot write {path}: {error.strerror}") from error
        return path

    def delete(self, video_id: str) -> None:
        """Delete all files of a video."""
        with self._lock(video_id):
            for suffix in SUFFIXES.values():
                (self.folder / f"{video_id}{suffix}").unlink(missing_ok=True)

    def clear(self) -> None:
        """Delete all files. Those that are being sent stay readable for their readers."""
        for path in self.folder.iterdir():
            if not path.name.startswith("."):
                path.unlink(missing_ok=True)

    def _lock(self, video_id: str) -> Lock:
        """Return the lock that is held while a video's files are created or deleted."""
        with self._guard:
            return self._locks.setdefault(video_id, Lock())

    def _make(self, job: StoredJob, path: Path, variant: str) -> None:
        video = path.with_suffix(SUFFIXES["video"])
        if not video.exists():
            self._join(job, video)
        draw: dict[str, Callable[[Path], bytes]] = {
            "thumbnail": thumbnail,
            "spritesheet": spritesheet,
        }
        if variant in draw:
            part = path.with_name(f".{path.name}")
            with create_file(part) as file:
                file.write(draw[variant](video))
            part.replace(path)

    def _join(self, job: StoredJob, path: Path) -> None:
        part = path.with_name(f".{path.name}")
        with create_file(part) as file:
            file.write(self._stored(self.store.header(job.id), job))
            for chunk in job.chunks:
                file.write(self._stored(self.store.fragment(job.id, chunk), job))
        defragment(part)
        part.chmod(FILE_MODE)  # FFmpeg has written it anew
        part.replace(path)

    def _stored(self, data: bytes | None, job: StoredJob) -> bytes:
        if data is None:
            raise RequestFailedError(f"video {job.id} was deleted meanwhile")
        return data
