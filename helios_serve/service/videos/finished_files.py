"""Finished videos as plain files: made from their segments when somebody asks for them."""

from collections.abc import Callable
from pathlib import Path
from threading import Lock
from weakref import WeakValueDictionary

from helios_serve.errors import RequestFailedError
from helios_serve.media.mp4 import defragment
from helios_serve.media.stills import spritesheet, thumbnail
from helios_serve.store.jobs import StoredJob
from helios_serve.store.video_store import VideoStore

MEDIA_TYPES = {"video": "video/mp4", "thumbnail": "image/webp", "spritesheet": "image/jpeg"}
SUFFIXES = {"video": ".mp4", "thumbnail": ".webp", "spritesheet": ".jpg"}


class FinishedFiles:
    """A folder of files that can be made again at any time, and so need not survive a crash."""

    def __init__(self, folder: Path, store: VideoStore) -> None:
        self.folder = folder
        self.store = store
        self._locks: WeakValueDictionary[str, Lock] = WeakValueDictionary()
        self._guard = Lock()
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.iterdir():
            left.unlink()

    def get(self, job: StoredJob, variant: str) -> Path:
        """The video with its index in front, or a picture of it; made once."""
        path = self.folder / f"{job.id}{SUFFIXES[variant]}"
        with self._lock(job.id):
            if not path.exists():
                self._make(job, path, variant)
        return path

    def delete(self, video_id: str) -> None:
        with self._lock(video_id):
            for suffix in SUFFIXES.values():
                (self.folder / f"{video_id}{suffix}").unlink(missing_ok=True)

    def _lock(self, video_id: str) -> Lock:
        """Held while files of a video are made or deleted; videos do not wait for each other."""
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
            part.write_bytes(draw[variant](video))
            part.replace(path)

    def _join(self, job: StoredJob, path: Path) -> None:
        part = path.with_name(f".{path.name}")
        with part.open("wb") as file:
            file.write(self._stored(self.store.header(job.id), job))
            for chunk in job.chunks:
                file.write(self._stored(self.store.fragment(job.id, chunk), job))
        defragment(part)
        part.replace(path)

    def _stored(self, data: bytes | None, job: StoredJob) -> bytes:
        if data is None:
            raise RequestFailedError(f"video {job.id} was deleted meanwhile")
        return data
