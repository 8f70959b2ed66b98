"""Reference images and videos, which are too large for the table of jobs."""

from pathlib import Path

import msgspec

from helios_serve.store.files import read_struct, write_struct
from helios_serve.store.folders import JobFolders
from helios_serve.store.jobs import StoredJob
from helios_serve.video_request import Frames, VideoRequest

MEDIA = "media.msgpack"


class Media(msgspec.Struct, frozen=True):
    """What `VideoRequest.without_media` leaves out."""

    image: Frames | None
    video: Frames | None


class InputStore(JobFolders):
    """One file a job that starts from an image or a video."""

    def put(self, request: VideoRequest) -> None:
        """Keep the request's reference, if it has one; durable when it returns."""
        if request.has_reference:
            media = Media(request.image, request.video)
            write_struct(self._path(request.request_id), media)

    def restore(self, request: VideoRequest) -> VideoRequest:
        """The request with its reference; raises StorageError if that is missing or damaged."""
        media = read_struct(self._path(request.request_id), Media)
        return msgspec.structs.replace(request, image=media.image, video=media.video)

    def committed(self, job: StoredJob) -> set[str]:
        return {MEDIA} if job.has_media else set()

    def _path(self, job_id: str) -> Path:
        return self.folder(job_id) / MEDIA
