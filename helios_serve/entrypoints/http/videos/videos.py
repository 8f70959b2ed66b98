"""Routes of videos."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from helios_serve.entrypoints.http.authentication import tenant_of
from helios_serve.entrypoints.http.bodies import read_body, take_uploads
from helios_serve.entrypoints.http.operations import (
    CREATION_ERRORS,
    JSON_TYPE,
    PAGE,
    VIDEO,
    Operation,
    RequestBody,
)
from helios_serve.entrypoints.http.paths import route_path
from helios_serve.entrypoints.http.queries import page_query
from helios_serve.entrypoints.http.ranges import StoredFileResponse
from helios_serve.entrypoints.http.responses import (
    POLL_HEADERS,
    json_response,
    page_response,
    timing_headers,
)
from helios_serve.errors import HeliosError, InvalidRequestError, RequestFailedError
from helios_serve.model_config import CHUNK_FRAMES
from helios_serve.service.errors import ApiError, not_found
from helios_serve.service.media.references import ReferenceInput
from helios_serve.service.media.uploads import Upload
from helios_serve.service.protocol import (
    CreateVideo,
    ExtendVideo,
    ForkVideo,
    Json,
    PromptSwitchedAt,
    RemixVideo,
    SwitchPrompt,
    Video,
    VideoDeleted,
    VideoList,
)
from helios_serve.service.rate_limits import RateLimits
from helios_serve.service.validation import convert
from helios_serve.service.videos.finished_files import MEDIA_TYPES
from helios_serve.service.videos.idempotency import IdempotencyKeys
from helios_serve.service.videos.request_builder import RequestBuilder
from helios_serve.service.videos.requests import check_has_end, continuation, extension, remix
from helios_serve.service.videos.videos import Videos
from helios_serve.store.jobs import StoredJob
from helios_serve.video_request import Relation, VideoRequest

Make = Callable[[Request, Json], Awaitable[VideoRequest]]


async def with_end(make: Make, request: Request, fields: Json) -> VideoRequest:
    """Make a request as `make` does. Raises InvalidRequestError for a video without an end."""
    asked = await make(request, fields)
    check_has_end(asked, "a response that waits for it")
    return asked


class VideoApi:
    """Handlers for the tenant's videos."""

    def __init__(self, videos: Videos, builder: RequestBuilder, limits: RateLimits) -> None:
        self.videos = videos
        self.builder = builder
        self.limits = limits
        self.engine = videos.engine
        self.store = videos.store
        self.idempotency = IdempotencyKeys(videos.store, videos.ids)

    @property
    def operations(self) -> tuple[Operation, ...]:
        return (*self._operations_of_all, *self._operations_of_one)

    @property
    def _operations_of_all(self) -> tuple[Operation, ...]:
        return (
            Operation(
                "POST",
                "/v1/videos",
                self.create,
                "Create a video; returns at once",
                Video,
                RequestBody(CreateVideo, ("input_reference",)),
                statuses=CREATION_ERRORS,
            ),
            Operation(
                "GET",
                "/v1/videos",
                self.list_page,
                "List your videos",
                VideoList,
                query=PAGE,
            ),
            Operation(
                "POST",
                "/v1/videos/sync",
                self.create_and_wait,
                "Create a video and wait until it is finished",
                MEDIA_TYPES["video"],
                RequestBody(CreateVideo, ("input_reference",)),
                statuses=(*CREATION_ERRORS, 500),
            ),
            Operation(
                "POST",
                "/v1/videos/edits",
                self.edit,
                "Create a video that continues the frames of another one, uploaded or video[id]",
                Video,
                RequestBody(CreateVideo, ("video",)),
                statuses=CREATION_ERRORS,
            ),
            Operation(
                "POST",
                "/v1/videos/extensions",
                self.extend,
                "Create a longer video that starts with an existing one",
                Video,
                RequestBody(ExtendVideo),
                statuses=CREATION_ERRORS,
            ),
        )

    @property
    def _operations_of_one(self) -> tuple[Operation, ...]:
        return (
            Operation("GET", VIDEO, self.retrieve, "Retrieve a video and its progress", Video),
            Operation(
                "DELETE",
                VIDEO,
                self.delete,
                "Delete a video; aborts it if it is running",
                VideoDeleted,
            ),
            Operation(
                "POST", f"{VIDEO}/cancel", self.cancel, "Cancel a video and keep its chunks", Video
            ),
            Operation(
                "POST",
                f"{VIDEO}/remix",
                self.remix,
                "Create the same video with another prompt",
                Video,
                RequestBody(RemixVideo),
                statuses=CREATION_ERRORS,
            ),
            Operation(
                "POST",
                f"{VIDEO}/fork",
                self.fork,
                "Continue a video in several ways, each with its own prompt",
                VideoList,
                RequestBody(ForkVideo),
                statuses=CREATION_ERRORS,
            ),
            Operation(
                "POST",
                f"{VIDEO}/prompt",
                self.switch_prompt,
                "Change the prompt of a running video",
                PromptSwitchedAt,
                RequestBody(SwitchPrompt),
                statuses=(400, 404, 409, 415, 503),
            ),
        )

    async def create(self, request: Request) -> Response:
        """Create a video and return it at once."""
        return await self._respond(request, self._new_request)

    async def create_and_wait(self, request: Request) -> Response:
        """Create a video and return its file when it is finished.

        The video is aborted if the client disconnects.
        """
        name = (await self._create(request, partial(with_end, self._new_request))).id
        done = asyncio.ensure_future(self._wait(name))
        gone = asyncio.ensure_future(disconnected(request))
        try:
            await asyncio.wait((done, gone), return_when=asyncio.FIRST_COMPLETED)
            if not done.done():
                await self.engine.abort(name)
                return Response(status_code=499)
            await done
        except RequestFailedError:
            self.videos.lifecycle.check_open()  # raises during shutdown: the video resumes later
            raise
        finally:
            for task in (done, gone):
                task.cancel()
        job = await self.videos.find(name, tenant_of(request))
        path = await self.videos.finished(job, "video")
        headers = {"x-video-id": name} | timing_headers(job)
        return StoredFileResponse(path, media_type=MEDIA_TYPES["video"], headers=headers)

    async def list_page(self, request: Request) -> Response:
        """List the tenant's videos, newest first (or `order=asc`).

        `after` is the last id of the previous page.
        """
        query = page_query(request)
        if query.after is not None:
            await self.videos.find(query.after, tenant_of(request))
        jobs = await asyncio.to_thread(
            self.store.page,
            tenant_of(request),
            query.after,
            query.limit + 1,
            newest_first=query.newest_first,
        )
        videos = await self.videos.describe_all(jobs[: query.limit])
        return page_response(VideoList, videos, has_more=len(jobs) > query.limit)

    async def retrieve(self, request: Request) -> Response:
        """Return a video.

        A running one has `openai-poll-after-ms`, and one with finished chunks has `server-timing`.
        Raises ApiError 404 if there is none.
        """
        job = await self.videos.find(request.path_params["video_id"], tenant_of(request))
        video = await self.videos.describe(job)
        headers = {} if video.status in ("completed", "failed") else POLL_HEADERS
        return json_response(video, headers | timing_headers(job))

    async def delete(self, request: Request) -> Response:
        """Delete a video and all its files. A running video is aborted."""
        job = await self.videos.find(request.path_params["video_id"], tenant_of(request))
        await self.videos.delete(job)
        return json_response(VideoDeleted(id=job.id))

    async def cancel(self, request: Request) -> Response:
        """Cancel a video and keep its chunks. A finished video is not changed."""
        job = await self.videos.find(request.path_params["video_id"], tenant_of(request))
        await self.engine.abort(job.id)
        return json_response(await self.videos.describe_id(job.id))

    async def remix(self, request: Request) -> Response:
        """Create the same video with another prompt."""
        return await self._respond(request, self._remix)

    async def extend(self, request: Request) -> Response:
        """Create a longer video that starts with an existing one, without a visible seam."""
        return await self._respond(request, self._extension)

    async def edit(self, request: Request) -> Response:
        """Create a video that continues the frames of an uploaded or an existing video."""
        return await self._respond(request, self._edit)

    async def fork(self, request: Request) -> Response:
        """Continue a video from its last finished chunk, once for each prompt."""
        body = convert(await read_body(request), ForkVideo)
        job = await self.videos.find(request.path_params["video_id"], tenant_of(request))
        self.builder.check_again(job.request)
        videos = await self.videos.fork(job, body.prompts, body.seconds)
        return page_response(VideoList, videos, has_more=False)

    async def switch_prompt(self, request: Request) -> Response:
        """Change the prompt of a running video, and return the first chunk that it affects."""
        body = convert(await read_body(request), SwitchPrompt)
        job = await self.videos.find(request.path_params["video_id"], tenant_of(request))
        switch = await self.engine.switch_prompt(job.id, body.prompt, body.transition_chunks)
        first = switch.chunk * CHUNK_FRAMES
        return json_response(PromptSwitchedAt(switch.prompt, switch.chunk, first))

    async def _respond(self, request: Request, make: Make) -> Response:
        """Create a video, and return it with headers for polling and for the tenant's limits."""
        video = await self._create(request, make)
        limits = await self.limits.headers(tenant_of(request), video.model)
        return json_response(video, POLL_HEADERS | limits)

    async def _create(self, request: Request, make: Make) -> Video:
        """Create the requested video, or return the one that its idempotency key has created."""
        tenant = tenant_of(request)
        fields = await read_body(request, takes_media=make != self._remix)
        key, path = request.headers.get("idempotency-key"), route_path(request.scope)
        async with self.idempotency.turn(key, tenant):
            keyed = await self.idempotency.find(key, tenant, path, fields)
            if keyed is not None and keyed.job is not None:
                return await self.videos.describe(keyed.job)
            asked = await make(request, fields)
            self.builder.check_again(asked)
            try:
                return await self.videos.accept(asked if keyed is None else keyed.claim(asked))
            except HeliosError:
                # The error response takes them from here.
                request.state.headers = await self.limits.headers(tenant, asked.model)
                raise

    async def _new_request(self, request: Request, fields: Json) -> VideoRequest:
        uploads = take_uploads(fields)
        unknown = uploads.keys() - {"input_reference"}
        if unknown:
            raise InvalidRequestError(
                f"got file field {min(unknown)!r}, expected input_reference", param=min(unknown)
            )
        return await self.builder.make(fields | uploads, tenant_of(request))

    async def _remix(self, request: Request, fields: Json) -> VideoRequest:
        body = convert(fields, RemixVideo)
        job = await self.videos.find(request.path_params["video_id"], tenant_of(request))
        source = await asyncio.to_thread(self.store.request, job.id)
        if source is None:
            raise not_found(job.id)
        return remix(source, self.videos.ids.new("video"), prompt=body.prompt)

    async def _extension(self, request: Request, fields: Json) -> VideoRequest:
        """Build an extension. Without a snapshot, continue the parent's last frames (V2V)."""
        video = fields.get("video")
        if is_media(video):
            del fields["video"]
            return await self._from_frames(fields, request, video, "continuation")
        body = convert(fields, ExtendVideo)
        job = await self.videos.find(body.video.get("id", ""), tenant_of(request))
        if job.status in ("queued", "in_progress", "completed"):
            return extension(job.request, self.videos.ids.new("video"), body=body)
        fields = continuation(job.request, body)
        asked = await self._from_job(fields, request, job, "continuation")
        return msgspec.structs.replace(asked, lora=job.request.lora)

    async def _edit(self, request: Request, fields: Json) -> VideoRequest:
        source = fields.pop("video", None)
        if is_media(source):
            return await self._from_frames(fields, request, source, "edit")
        if not isinstance(source, dict):
            raise InvalidRequestError(
                "missing video, expected a file, video[id] or video[video_url]", param="video"
            )
        job = await self.videos.find(str(source["id"]), tenant_of(request))
        return await self._from_job(fields, request, job, "edit")

    async def _from_job(
        self, fields: Json, request: Request, job: StoredJob, relation: Relation
    ) -> VideoRequest:
        path = await self.videos.finished(job, "video")
        asked = await self._from_frames(fields, request, path, relation)
        return msgspec.structs.replace(asked, parent=job.id)

    async def _from_frames(
        self, fields: Json, request: Request, video: Any, relation: Relation
    ) -> VideoRequest:
        given = ReferenceInput(video, "video", "video")
        asked = await self.builder.make(fields, tenant_of(request), given)
        return msgspec.structs.replace(asked, relation=relation)

    async def _wait(self, video_id: str) -> None:
        async for _ in self.engine.watch(video_id):
            pass


def is_media(video: Any) -> bool:
    """Return whether `video` is a file or refers to one. Otherwise it may name a video by id."""
    return isinstance(video, Upload) or (isinstance(video, dict) and "id" not in video)


async def disconnected(request: Request) -> None:
    """Wait until the client disconnects."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


class CharacterApi:
    """OpenAI's routes of characters, which Helios does not have."""

    @property
    def operations(self) -> tuple[Operation, ...]:
        return (
            Operation(
                "POST",
                "/v1/videos/characters",
                self.refuse,
                "Not supported",
                JSON_TYPE,
                RequestBody(None),
                statuses=(501,),
            ),
            Operation(
                "GET",
                "/v1/videos/characters/{name}",
                self.refuse,
                "Not supported",
                JSON_TYPE,
                statuses=(501,),
            ),
        )

    async def refuse(self, request: Request) -> Response:  # noqa: ARG002
        """Raise ApiError 501: Helios has no characters."""
        raise ApiError(501, "characters are not supported", code="not_supported")
