"""The objects of videos: what they are called, which exist, and how they are read."""

import asyncio
from typing import Literal

from helios_serve.options.objects import ObjectOptions
from helios_serve.store.job_files import HEADER, folder_name, fragment_name
from helios_serve.store.jobs import StoredJob
from helios_serve.store.objects.object_store import ObjectStore
from helios_serve.store.objects.uploads import Uploads, VideoUpload
from helios_serve.store.video_store import VideoStore

Part = int | Literal["header", "video"]
"""A part of a video that is an object: a chunk's segment, their header, or the finished MP4."""
VIDEO = "video.mp4"
MP4_TYPE, SEGMENT_TYPE = "video/mp4", "video/iso.segment"


class VideoObjects:
    """The objects of all videos in an object store.

    Those of a video lie in a folder of their own. Segments have the same names as on disk.
    """

    def __init__(self, objects: ObjectStore, uploads: Uploads, options: ObjectOptions) -> None:
        self.objects = objects
        self.uploads = uploads
        self.options = options

    def fetch(self, video_id: str, file: str) -> bytes | None:
        """Return a segment or the header of a video whose local segments were deleted, else None.

        Raises ObjectStoreError, and DamagedFileError if the object is missing or damaged.
        """
        upload = self.uploads.get(video_id)
        if upload is None or not upload.is_dropped or upload.is_deleted:
            return None
        return self.objects.get(f"{folder_name(video_id)}/{file}")

    async def signed(self, job: StoredJob, part: Part, method: str) -> str | None:
        """Return a URL at which a client can read a part of a video.

        `method` is GET or HEAD. None means that this server must send the part: it is not uploaded
        yet, or clients are not redirected. The caller has checked that the client may read it.
        """
        if self.options.object_store_serving != "redirect":
            return None
        upload = await asyncio.to_thread(self.uploads.get, job.id)
        if not is_uploaded(job, upload, part):
            return None
        lifetime = self.options.object_store_url_lifetime
        return await self.objects.sign(
            name_of(job.id, part), "HEAD" if method == "HEAD" else "GET", lifetime
        )

    async def is_only_copy(self, job: StoredJob) -> bool:
        """Return whether the finished MP4 must be read from the object store."""
        upload = await asyncio.to_thread(self.uploads.get, job.id)
        return upload is not None and bool(upload.is_dropped) and is_uploaded(job, upload, "video")


def open_objects(store: VideoStore, options: ObjectOptions) -> VideoObjects | None:
    """Connect a store to its object store, if `options` name one.

    Raises ObjectStoreError if it cannot be written and read, and InvalidRequestError if the data
    folder belongs to another one.
    """
    uploads = Uploads(store.database)
    if not options.object_store:
        uploads.check_unused()
        return None
    objects = ObjectStore(options.object_store, options.object_store_endpoint)
    objects.check()
    uploads.use(objects.url)
    videos = VideoObjects(objects, uploads, options)
    store.files.segments.fetch = videos.fetch
    return videos


def name_of(video_id: str, part: Part) -> str:
    """Return the name of an object, below the prefix."""
    match part:
        case "header":
            file = HEADER
        case "video":
            file = VIDEO
        case chunk:
            file = fragment_name(chunk)
    return f"{folder_name(video_id)}/{file}"


def media_type_of(part: Part) -> str:
    return SEGMENT_TYPE if isinstance(part, int) else MP4_TYPE


def is_uploaded(job: StoredJob, upload: VideoUpload | None, part: Part) -> bool:
    """Return whether a part of a video is known to be in the object store."""
    if upload is None or upload.is_deleted:
        return False
    if part == "video":
        return bool(upload.has_video)
    chunk = job.first_chunk if part == "header" else part
    return job.first_chunk <= chunk < min(upload.next_chunk, job.next_chunk)
