"""Reference images and videos of jobs, in files because they are too large for the table."""

from pathlib import Path

import msgspec

from helios_serve.store.files import read_struct, write_struct
from helios_serve.store.folders import JobFolders
from helios_serve.store.jobs import StoredJob
from helios_serve.video_request import Frames, VideoRequest

MEDIA = "media.msgpack"


class Media(msgspec.Struct, frozen=True):
    """The reference of a request: what `VideoRequest.without_media` removes."""

    image: Frames | None
    video: Frames | None


class InputStore(JobFolders):
    """Stores one file for each job with a reference (I2V, V2V)."""

    def put(self, request: VideoRequest) -> None:
        """Store the request's reference, if it has one. Durable when it returns."""
        if request.has_reference:
            media = Media(request.image, request.video)
            write_struct(self._path(request.request_id), media)

    def restore(self, request: VideoRequest) -> VideoRequest:
        """Return the request with its reference. Raises DamagedFileError if the file is damaged."""
        media = read_struct(self._path(request.request_id), Media)
        return msgspec.structs.replace(request, image=media.image, video=media.video)

    def committed(self, job: StoredJob) -> set[str]:
        return {MEDIA} if job.has_media else set()

    def _path(self, job_id: str) -> Path:
        return self.folder(job_id) / MEDIA
