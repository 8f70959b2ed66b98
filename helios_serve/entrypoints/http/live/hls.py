"""HLS routes: a playlist that grows while the video is generated, and its segments (RFC 8216)."""

import asyncio
import math
import re

from starlette.requests import Request
from starlette.responses import Response

from helios_serve.entrypoints.http.authentication import tenant_of
from helios_serve.entrypoints.http.operations import VIDEO, Operation
from helios_serve.entrypoints.http.videos.object_response import object_response
from helios_serve.model_config import CHUNK_FRAMES, frames_of_chunk
from helios_serve.service.errors import ApiError, not_found
from helios_serve.service.videos.video_object import wire_status
from helios_serve.service.videos.videos import Videos
from helios_serve.store.jobs import StoredJob
from helios_serve.store.objects.video_objects import media_type_of

PLAYLIST_TYPE = "application/vnd.apple.mpegurl"
INIT_TYPE, SEGMENT_TYPE = media_type_of("header"), media_type_of(0)
FRESH = {"cache-control": "no-cache"}
IMMUTABLE = {"cache-control": "private, max-age=31536000, immutable"}
"""Cache headers of segments, which never change. They are private to the tenant, so no shared
cache.
"""
NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")
"""A canonical chunk number, so that caches store each segment once."""
FIRST_CHUNK_SECONDS = 10.0
"""Maximum seconds to wait for the first chunk. It is shorter than players' playlist timeouts."""


class HlsApi:
    """Handlers for HLS playback of the tenant's videos."""

    def __init__(self, videos: Videos) -> None:
        self.videos = videos

    @property
    def operations(self) -> tuple[Operation, ...]:
        return (
            Operation(
                "GET",
                f"{VIDEO}/hls/index.m3u8",
                self.playlist,
                "Get an HLS playlist that grows while the video is generated",
                PLAYLIST_TYPE,
                statuses=(404, 409, 503),
            ),
            Operation(
                "GET",
                f"{VIDEO}/hls/init.mp4",
                self.header,
                "Get the MP4 header of the segments",
                INIT_TYPE,
                statuses=(307, 404, 503),
            ),
            Operation(
                "GET",
                f"{VIDEO}/hls/{{chunk}}.m4s",
                self.segment,
                "Get one chunk as a segment",
                SEGMENT_TYPE,
                statuses=(307, 404, 503),
            ),
        )

    async def playlist(self, request: Request) -> Response:
        """Return the playlist of all chunks so far.

        Players reject an empty playlist, so the response waits for the first chunk. If it takes too
        long, the response is 503 with `retry-after`. A video that ended without chunks is 409.
        """
        job = await self.videos.find(request.path_params["video_id"], tenant_of(request))
        self.videos.engine.note_view(job.id)
        if not job.chunks and not job.is_finished:
            job = await self._wait_for_chunk(job)
        if job.chunks:
            return Response(playlist(job), media_type=PLAYLIST_TYPE, headers=FRESH)
        message = f"video {job.id} is {wire_status(job)} and has no chunk"
        if job.is_finished:
            raise ApiError(409, message, code="not_ready")
        raise ApiError(503, f"{message} yet", code="not_ready", retry_after=1)

    async def header(self, request: Request) -> Response:
        """Return the MP4 header (ftyp and moov), which players need before the first segment."""
        job = await self.videos.find(request.path_params["video_id"], tenant_of(request))
        sent = await object_response(self.videos.objects, job, "header", request)
        if sent is not None:
            return sent
        data = await asyncio.to_thread(self.videos.store.header, job.id)
        if data is None:
            raise segment_not_found(job, "init.mp4")
        return Response(data, media_type=INIT_TYPE, headers=IMMUTABLE)

    async def segment(self, request: Request) -> Response:
        """Return a chunk's segment (moof and mdat). Raises ApiError 404 if it does not exist."""
        job = await self.videos.find(request.path_params["video_id"], tenant_of(request))
        chunk = request.path_params["chunk"]
        data = None
        if NUMBER.fullmatch(chunk):
            sent = await object_response(self.videos.objects, job, int(chunk), request)
            if sent is not None:
                return sent
            data = await asyncio.to_thread(self.videos.store.fragment, job.id, int(chunk))
        if data is None:
            raise segment_not_found(job, f"{chunk}.m4s")
        return Response(data, media_type=SEGMENT_TYPE, headers=IMMUTABLE)

    async def _wait_for_chunk(self, job: StoredJob) -> StoredJob:
        """Return the job once it has a chunk or is finished, or unchanged after
        FIRST_CHUNK_SECONDS.
        """
        change = self.videos.engine.changes(job.id)
        if change is not None:
            # The first chunk may have arrived before `change` was requested.
            job = await self._reload(job)
            if not job.chunks and not job.is_finished:
                await self.videos.wait_for(change, FIRST_CHUNK_SECONDS)
        return await self._reload(job)

    async def _reload(self, job: StoredJob) -> StoredJob:
        found = await asyncio.to_thread(self.videos.store.job, job.id)
        if found is None:  # deleted meanwhile
            raise not_found(job.id)
        return found


def playlist(job: StoredJob) -> str:
    """Return the playlist (RFC 8216) of a job that has at least one chunk.

    It is of type EVENT, and players begin at the beginning. That of a video without an end is live:
    its window slides, and players begin near the last chunk.
    """
    params, shown = job.request.params, job.shown_chunks
    kind = [] if job.is_endless else ["#EXT-X-PLAYLIST-TYPE:EVENT"]
    start = [] if job.is_endless else ["#EXT-X-START:TIME-OFFSET=0"]
    lines = [
        "#EXTM3U",
        "#EXT-X-VERSION:7",
        f"#EXT-X-TARGETDURATION:{math.ceil(CHUNK_FRAMES / params.fps)}",
        *kind,
        f"#EXT-X-MEDIA-SEQUENCE:{shown.start}",
        "#EXT-X-INDEPENDENT-SEGMENTS",
        *start,
        '#EXT-X-MAP:URI="init.mp4"',
    ]
    for chunk in shown:
        seconds = frames_of_chunk(params.num_frames, chunk).length / params.fps
        lines += [f"#EXTINF:{seconds:.6f},", f"{chunk}.m4s"]
    if job.is_finished:
        lines.append("#EXT-X-ENDLIST")
    return "\n".join((*lines, ""))


def segment_not_found(job: StoredJob, name: str) -> ApiError:
    return ApiError(404, f"{name} of video {job.id} not found", code="not_found")
