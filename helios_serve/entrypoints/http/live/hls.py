"""The routes of HLS: a playlist that grows with the video, and its segments."""

import asyncio
import math
import re

from starlette.requests import Request
from starlette.responses import Response

from helios_serve.entrypoints.http.authentication import tenant_of
from helios_serve.entrypoints.http.operations import VIDEO, Operation
from helios_serve.model_config import CHUNK_FRAMES, frames_of_chunk
from helios_serve.service.errors import ApiError, not_found
from helios_serve.service.videos.video_object import wire_status
from helios_serve.service.videos.videos import Videos
from helios_serve.store.jobs import StoredJob

PLAYLIST_TYPE = "application/vnd.apple.mpegurl"
INIT_TYPE = "video/mp4"
SEGMENT_TYPE = "video/iso.segment"
FRESH = {"cache-control": "no-cache"}
IMMUTABLE = {"cache-control": "private, max-age=31536000, immutable"}
"""Segments never change, but they are the tenant's own: no cache may share them."""
NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")
"""One name a chunk, so that caches hold it once."""
PATIENCE = 10.0
"""Seconds that a player waits for the first chunk: less than players give a playlist."""


class HlsApi:
    """Handlers over the sender's videos."""

    def __init__(self, videos: Videos) -> None:
        self.videos = videos

    @property
    def operations(self) -> tuple[Operation, ...]:
        return (
            Operation(
                "GET",
                f"{VIDEO}/hls/index.m3u8",
                self.playlist,
                "An HLS playlist that grows while the video is made",
                PLAYLIST_TYPE,
                statuses=(404, 409, 503),
            ),
            Operation(
                "GET",
                f"{VIDEO}/hls/init.mp4",
                self.header,
                "The header of its segments",
                INIT_TYPE,
                statuses=(404,),
            ),
            Operation(
                "GET",
                f"{VIDEO}/hls/{{chunk}}.m4s",
                self.segment,
                "One chunk as a segment",
                SEGMENT_TYPE,
                statuses=(404,),
            ),
        )

    async def playlist(self, request: Request) -> Response:
        """All chunks so far. No player takes an empty playlist, so the first chunk is waited for;
        where it takes longer, the player is told to come again."""
        job = await self.videos.find(request.path_params["video_id"], tenant_of(request))
        if not job.chunks and not job.is_finished:
            job = await self._with_chunk(job)
        if job.chunks:
            return Response(playlist(job), media_type=PLAYLIST_TYPE, headers=FRESH)
        message = f"video {job.id} is {wire_status(job)} and has no chunk"
        if job.is_finished:
            raise ApiError(409, message, code="not_ready")
        raise ApiError(503, f"{message} yet", code="not_ready", retry_after=1)

    async def header(self, request: Request) -> Response:
        """What every player needs before the first segment."""
        job = await self.videos.find(request.path_params["video_id"], tenant_of(request))
        data = await asyncio.to_thread(self.videos.store.header, job.id)
        if data is None:
            raise not_there(job, "init.mp4")
        return Response(data, media_type=INIT_TYPE, headers=IMMUTABLE)

    async def segment(self, request: Request) -> Response:
        job = await self.videos.find(request.path_params["video_id"], tenant_of(request))
        chunk = request.path_params["chunk"]
        data = None
        if NUMBER.fullmatch(chunk):
            data = await asyncio.to_thread(self.videos.store.fragment, job.id, int(chunk))
        if data is None:
            raise not_there(job, f"{chunk}.m4s")
        return Response(data, media_type=SEGMENT_TYPE, headers=IMMUTABLE)

    async def _with_chunk(self, job: StoredJob) -> StoredJob:
        """The job when it has a chunk or is over, or as it is when patience ends."""
        change = self.videos.engine.changes(job.id)
        if change is not None:
            # It may have come between the look at the job and the look for a change.
            job = await self._again(job)
            if not job.chunks and not job.is_finished:
                await self.videos.wait_for(change, PATIENCE)
        return await self._again(job)

    async def _again(self, job: StoredJob) -> StoredJob:
        found = await asyncio.to_thread(self.videos.store.job, job.id)
        if found is None:  # deleted meanwhile
            raise not_found(job.id)
        return found


def playlist(job: StoredJob) -> str:
    """The playlist of what is there of a job that has a chunk (RFC 8216, EVENT)."""
    params = job.request.params
    lines = [
        "#EXTM3U",
        "#EXT-X-VERSION:7",
        f"#EXT-X-TARGETDURATION:{math.ceil(CHUNK_FRAMES / params.fps)}",
        "#EXT-X-PLAYLIST-TYPE:EVENT",
        f"#EXT-X-MEDIA-SEQUENCE:{job.first_chunk}",
        "#EXT-X-INDEPENDENT-SEGMENTS",
        "#EXT-X-START:TIME-OFFSET=0",
        '#EXT-X-MAP:URI="init.mp4"',
    ]
    for chunk in job.chunks:
        seconds = frames_of_chunk(params.num_frames, chunk).length / params.fps
        lines += [f"#EXTINF:{seconds:.6f},", f"{chunk}.m4s"]
    if job.is_finished:
        lines.append("#EXT-X-ENDLIST")
    return "\n".join((*lines, ""))


def not_there(job: StoredJob, name: str) -> ApiError:
    return ApiError(404, f"got {name} of video {job.id}, which is not there", code="not_found")
