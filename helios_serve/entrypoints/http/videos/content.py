"""Routes of a video's content: the finished file, images, and a live stream."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

from starlette.requests import Request
from starlette.responses import Response

from helios_serve.entrypoints.http.authentication import tenant_of
from helios_serve.entrypoints.http.operations import FROM_CHUNK, VIDEO, Operation
from helios_serve.entrypoints.http.queries import first_chunk_query
from helios_serve.entrypoints.http.ranges import StoredFileResponse
from helios_serve.entrypoints.http.responses import live_response, timing_headers
from helios_serve.entrypoints.http.videos.object_response import object_response
from helios_serve.errors import InvalidRequestError, RequestFailedError
from helios_serve.service.protocol import Json
from helios_serve.service.videos.finished_files import MEDIA_TYPES
from helios_serve.service.videos.videos import Videos
from helios_serve.store.jobs import StoredJob
from helios_serve.store.video_store import VideoStore

VARIANT: Json = {"enum": list(MEDIA_TYPES), "default": "video"}


class ContentApi:
    """Handlers for the content of the tenant's videos."""

    def __init__(self, videos: Videos) -> None:
        self.videos = videos

    @property
    def operations(self) -> tuple[Operation, ...]:
        return (
            Operation(
                "GET",
                f"{VIDEO}/content",
                self.content,
                "Download the finished video, or an image of it; supports range requests",
                MEDIA_TYPES["video"],
                query={"variant": VARIANT},
                statuses=(307, 400, 404, 409, 416, 503),
            ),
            Operation(
                "GET",
                f"{VIDEO}/stream",
                self.stream,
                "Stream the video as fragmented MP4 while it is generated",
                MEDIA_TYPES["video"],
                query=FROM_CHUNK,
                statuses=(400, 404, 503),
            ),
        )

    async def content(self, request: Request) -> Response:
        """Return the finished video, or an image of it. Supports range requests."""
        variant = request.query_params.get("variant", "video")
        if variant not in MEDIA_TYPES:
            known = ", ".join(MEDIA_TYPES)
            raise InvalidRequestError(
                f"got variant {variant!r}, expected one of: {known}", param="variant"
            )
        job = await self.videos.find(request.path_params["video_id"], tenant_of(request))
        headers = timing_headers(job)
        if variant == "video" and job.is_finished:
            sent = await object_response(self.videos.objects, job, "video", request, headers)
            if sent is not None:
                return sent
        path = await self.videos.finished(job, variant)
        return StoredFileResponse(path, media_type=MEDIA_TYPES[variant], headers=headers)

    async def stream(self, request: Request) -> Response:
        """Stream the video as fragmented MP4 while it is generated.

        A finished one is checked first, because a response that has begun cannot report an error.
        Raises DamagedFileError.
        """
        job = await self.videos.find(request.path_params["video_id"], tenant_of(request))
        first = first_chunk_query(request, job)
        if job.is_finished:
            await asyncio.to_thread(check_chunks, self.videos.store, job, first)
        return live_response(request, self._stream(job.id, first), "video/mp4")

    async def _stream(self, video_id: str, first: int) -> AsyncIterator[bytes]:
        """Yield the MP4 header and the segments.

        If the video ends early, the stream ends normally, because the segments so far are a
        playable video.
        """
        is_first = True
        with suppress(RequestFailedError):
            async for chunk in self.videos.engine.watch(video_id, first):
                assert chunk.segment is not None, "stored videos come in segments"
                yield chunk.segment.header if is_first else b""
                yield chunk.segment.fragment
                is_first = False


def check_chunks(store: VideoStore, job: StoredJob, first: int) -> None:
    """Raise DamagedFileError if a stored chunk of a job, from `first` on, is damaged."""
    store.header(job.id)
    for chunk in range(max(first, job.first_chunk), job.next_chunk):
        store.fragment(job.id, chunk)
