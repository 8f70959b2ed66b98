"""The routes of videos."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from helios_serve.entrypoints.openai.answers import POLL_HEADERS, answer
from helios_serve.entrypoints.openai.bodies import convert, read_body, take_uploads
from helios_serve.entrypoints.openai.creations import Creations
from helios_serve.entrypoints.openai.errors import ApiError, not_found
from helios_serve.entrypoints.openai.finished_files import MEDIA_TYPES
from helios_serve.entrypoints.openai.identity import tenant_of
from helios_serve.entrypoints.openai.pages import page_answer, page_query
from helios_serve.entrypoints.openai.protocol import (
    ExtendVideo,
    Json,
    PromptSwitchedAt,
    RemixVideo,
    SwitchPrompt,
    Video,
    VideoDeleted,
    VideoList,
)
from helios_serve.entrypoints.openai.references import Given
from helios_serve.entrypoints.openai.repetitions import Repetitions
from helios_serve.entrypoints.openai.video_requests import continuation, extension, remix
from helios_serve.entrypoints.openai.video_service import VideoService
from helios_serve.errors import InvalidRequestError, RequestFailedError
from helios_serve.model_config import CHUNK_FRAMES
from helios_serve.sampling_params import Relation, VideoRequest
from helios_serve.store.jobs import StoredJob

Make = Callable[[Request, Json], Awaitable[VideoRequest]]


class VideoApi:
    """Handlers over the sender's videos."""

    def __init__(self, videos: VideoService, creations: Creations) -> None:
        self.videos = videos
        self.creations = creations
        self.engine = videos.engine
        self.store = videos.store
        self.repetitions = Repetitions(videos.store)

    @property
    def routes(self) -> list[Route]:
        one = "/v1/videos/{video_id}"
        table: list[tuple[str, str, Callable[[Request], Awaitable[Response]]]] = [
            ("POST", "/v1/videos", self.create),
            ("GET", "/v1/videos", self.list_page),
            ("POST", "/v1/videos/sync", self.create_and_wait),
            ("POST", "/v1/videos/edits", self.edit),
            ("POST", "/v1/videos/extensions", self.extend),
            ("POST", "/v1/videos/characters", self.refuse_characters),
            ("GET", "/v1/videos/characters/{name}", self.refuse_characters),
            ("GET", one, self.retrieve),
            ("DELETE", one, self.delete),
            ("POST", f"{one}/cancel", self.cancel),
            ("POST", f"{one}/remix", self.remix),
            ("POST", f"{one}/prompt", self.switch_prompt),
        ]
        return [Route(path, handler, methods=[method]) for method, path, handler in table]

    async def create(self, request: Request) -> Response:
        """Accept a video, and answer at once."""
        return answer(await self._order(request, self._new), POLL_HEADERS)

    async def create_and_wait(self, request: Request) -> Response:
        """Make a video while the client waits; one that nobody waits for any more is ended."""
        name = (await self._order(request, self._new)).id
        done = asyncio.ensure_future(self._wait(name))
        gone = asyncio.ensure_future(disconnected(request))
        try:
            await asyncio.wait((done, gone), return_when=asyncio.FIRST_COMPLETED)
            if not done.done():
                await self.engine.abort(name)
                return Response(status_code=499)
            await done
        except RequestFailedError:
            self.videos.lifecycle.check_open()  # if that is why, the video goes on another time
            raise
        finally:
            for task in (done, gone):
                task.cancel()
        path = await self.videos.finished(await self.videos.find(name, request), "video")
        return FileResponse(path, media_type=MEDIA_TYPES["video"], headers={"x-video-id": name})

    async def list_page(self, request: Request) -> Response:
        """Newest first, or `order=asc`; `after` is the last id of the page before."""
        query = page_query(request)
        if query.after is not None:
            await self.videos.find(query.after, request)
        jobs = await asyncio.to_thread(
            self.store.page,
            tenant_of(request),
            query.after,
            query.limit + 1,
            newest_first=query.newest_first,
        )
        videos = await self.videos.describe_all(jobs[: query.limit])
        return page_answer(VideoList, videos, has_more=len(jobs) > query.limit)

    async def retrieve(self, request: Request) -> Response:
        video = await self.videos.describe(
            await self.videos.find(request.path_params["video_id"], request)
        )
        headers = {} if video.status in ("completed", "failed") else POLL_HEADERS
        return answer(video, headers)

    async def delete(self, request: Request) -> Response:
        """End it if it is being made, and forget it with all its files."""
        job = await self.videos.find(request.path_params["video_id"], request)
        await self.videos.delete(job)
        return answer(VideoDeleted(id=job.id))

    async def cancel(self, request: Request) -> Response:
        """End it and keep what was made; one that is over stays as it is."""
        job = await self.videos.find(request.path_params["video_id"], request)
        await self.engine.abort(job.id)
        return answer(await self.videos.describe_id(job.id))

    async def remix(self, request: Request) -> Response:
        """The same video under another prompt."""
        return answer(await self._order(request, self._remix), POLL_HEADERS)

    async def extend(self, request: Request) -> Response:
        """More of a finished video: what comes is both, without a seam."""
        return answer(await self._order(request, self._longer), POLL_HEADERS)

    async def edit(self, request: Request) -> Response:
        """A video that goes on from an uploaded one, or from a finished one of ours."""
        return answer(await self._order(request, self._edit), POLL_HEADERS)

    async def switch_prompt(self, request: Request) -> Response:
        """Turn a video in the making to another prompt; says from which chunk on."""
        body = convert(await read_body(request), SwitchPrompt)
        job = await self.videos.find(request.path_params["video_id"], request)
        switch = await self.engine.switch_prompt(job.id, body.prompt, body.transition_chunks)
        first = switch.chunk * CHUNK_FRAMES
        return answer(PromptSwitchedAt(switch.prompt, switch.chunk, first))

    async def refuse_characters(self, request: Request) -> Response:  # noqa: ARG002
        raise ApiError(501, "characters are not supported", code="not_supported")

    async def _order(self, request: Request, make: Make) -> Video:
        """Have made what a request asks for, or find it if it was asked for before."""
        fields = await read_body(request)
        order = await self.repetitions.find(request, fields)
        if order is not None and order.job is not None:
            return await self.videos.describe(order.job)
        asked = await make(request, fields)
        if order is None:
            return await self.videos.accept(asked)
        try:
            return await self.videos.accept(order.claim(asked))
        except InvalidRequestError as error:
            if error.param != "request_id":
                raise
            return await self.videos.describe_id(order.video_id)  # its twin was faster

    async def _new(self, request: Request, fields: Json) -> VideoRequest:
        uploads = take_uploads(fields)
        unknown = uploads.keys() - {"input_reference"}
        if unknown:
            raise InvalidRequestError(
                f"got a file {min(unknown)!r}, expected input_reference", param=min(unknown)
            )
        return await self.creations.make(fields | uploads, tenant_of(request))

    async def _remix(self, request: Request, fields: Json) -> VideoRequest:
        body = convert(fields, RemixVideo)
        job = await self.videos.find(request.path_params["video_id"], request)
        source = await asyncio.to_thread(self.store.request, job.id)
        if source is None:
            raise not_found(job.id)
        return remix(source, body.prompt)

    async def _longer(self, request: Request, fields: Json) -> VideoRequest:
        """What has no state to go on from is gone on with from its last frames."""
        video = fields.get("video")
        if is_media(video):
            del fields["video"]
            return await self._from_frames(fields, request, video, "continuation")
        body = convert(fields, ExtendVideo)
        job = await self.videos.find(body.video.get("id", ""), request)
        if job.status in ("queued", "in_progress", "completed"):
            return extension(job.request, body)
        return await self._from_job(continuation(job.request, body), request, job, "continuation")

    async def _edit(self, request: Request, fields: Json) -> VideoRequest:
        source = fields.pop("video", None)
        if is_media(source):
            return await self._from_frames(fields, request, source, "edit")
        if not isinstance(source, dict):
            raise InvalidRequestError(
                "got no video, expected a file, video[id] or video[video_url]", param="video"
            )
        job = await self.videos.find(str(source["id"]), request)
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
        given = Given(video, "video", "video")
        asked = await self.creations.make(fields, tenant_of(request), given)
        return msgspec.structs.replace(asked, relation=relation)

    async def _wait(self, video_id: str) -> None:
        async for _ in self.engine.watch(video_id):
            pass


def is_media(video: Any) -> bool:
    """Whether it is a file, or says where one is; else it may name a video of ours."""
    return isinstance(video, UploadFile) or (isinstance(video, dict) and "id" not in video)


async def disconnected(request: Request) -> None:
    """Returns when the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
