"""The routes of videos."""

import asyncio
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from helios_serve.entrypoints.openai.answers import POLL_HEADERS, answer
from helios_serve.entrypoints.openai.bodies import convert, read_body, take_uploads
from helios_serve.entrypoints.openai.creations import Creations
from helios_serve.entrypoints.openai.errors import ApiError, not_found
from helios_serve.entrypoints.openai.finished_files import MEDIA_TYPES
from helios_serve.entrypoints.openai.identity import tenant_of
from helios_serve.entrypoints.openai.protocol import (
    ExtendVideo,
    PromptSwitchedAt,
    RemixVideo,
    SwitchPrompt,
    VideoDeleted,
    VideoList,
)
from helios_serve.entrypoints.openai.references import Given
from helios_serve.entrypoints.openai.video_requests import extension, remix
from helios_serve.entrypoints.openai.video_service import VideoService
from helios_serve.errors import InvalidRequestError
from helios_serve.model_config import CHUNK_FRAMES

MAX_PAGE, DEFAULT_PAGE = 100, 20


class VideoApi:
    """Handlers over the sender's videos."""

    def __init__(self, videos: VideoService, creations: Creations) -> None:
        self.videos = videos
        self.creations = creations
        self.engine = videos.engine
        self.store = videos.store

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
        return answer(await self.videos.accept(await self.creations.read(request)), POLL_HEADERS)

    async def create_and_wait(self, request: Request) -> Response:
        """Make a video while the client waits; one that nobody waits for any more is ended."""
        asked = await self.creations.read(request)
        await self.videos.accept(asked)
        name = asked.request_id
        done = asyncio.ensure_future(self._wait(name))
        gone = asyncio.ensure_future(disconnected(request))
        try:
            await asyncio.wait((done, gone), return_when=asyncio.FIRST_COMPLETED)
            if not done.done():
                await self.engine.abort(name)
                return Response(status_code=499)
            await done
        finally:
            for task in (done, gone):
                task.cancel()
        path = await self.videos.finished(await self.videos.find(name, request), "video")
        return FileResponse(path, media_type=MEDIA_TYPES["video"], headers={"x-video-id": name})

    async def list_page(self, request: Request) -> Response:
        """Newest first, or `order=asc`; `after` is the last id of the page before."""
        query = request.query_params
        limit, order = query.get("limit", str(DEFAULT_PAGE)), query.get("order", "desc")
        if not limit.isdigit() or not 1 <= int(limit) <= MAX_PAGE:
            raise InvalidRequestError(
                f"got limit {limit!r}, expected 1 to {MAX_PAGE}", param="limit"
            )
        if order not in ("asc", "desc"):
            raise InvalidRequestError(f"got order {order!r}, expected asc or desc", param="order")
        after = query.get("after")
        if after is not None:
            await self.videos.find(after, request)
        jobs = await asyncio.to_thread(
            self.store.page,
            tenant_of(request),
            after,
            int(limit) + 1,
            newest_first=order == "desc",
        )
        videos = [await self.videos.describe(job) for job in jobs[: int(limit)]]
        return answer(
            VideoList(
                data=videos,
                first_id=videos[0].id if videos else None,
                last_id=videos[-1].id if videos else None,
                has_more=len(jobs) > int(limit),
            )
        )

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
        body = convert(await read_body(request), RemixVideo)
        job = await self.videos.find(request.path_params["video_id"], request)
        source = await asyncio.to_thread(self.store.request, job.id)
        if source is None:
            raise not_found(job.id)
        return answer(await self.videos.accept(remix(source, body.prompt)), POLL_HEADERS)

    async def extend(self, request: Request) -> Response:
        """More of a finished video: what comes is both, without a seam."""
        body = convert(await read_body(request), ExtendVideo)
        job = await self.videos.find(body.video.get("id", ""), request)
        longer = extension(job.request, body)
        await self.engine.extend(job.id, longer)
        return answer(await self.videos.describe_id(longer.request_id), POLL_HEADERS)

    async def edit(self, request: Request) -> Response:
        """A video that goes on from an uploaded one, or from a finished one of ours."""
        fields = await read_body(request)
        uploads = take_uploads(fields)
        source = uploads.pop("video", None) or fields.pop("video", None)
        fields |= uploads
        if isinstance(source, dict) and "id" in source:
            job = await self.videos.find(str(source["id"]), request)
            source = await self.videos.finished(job, "video")
        if source is None:
            raise InvalidRequestError(
                "got no video, expected a file, video[id] or video[video_url]", param="video"
            )
        given = Given(source, "video", "video")
        asked = await self.creations.make(fields, tenant_of(request), given)
        return answer(await self.videos.accept(asked), POLL_HEADERS)

    async def switch_prompt(self, request: Request) -> Response:
        """Turn a video in the making to another prompt; says from which chunk on."""
        body = convert(await read_body(request), SwitchPrompt)
        job = await self.videos.find(request.path_params["video_id"], request)
        switch = await self.engine.switch_prompt(job.id, body.prompt, body.transition_chunks)
        first = switch.chunk * CHUNK_FRAMES
        return answer(PromptSwitchedAt(switch.prompt, switch.chunk, first))

    async def refuse_characters(self, request: Request) -> Response:  # noqa: ARG002
        raise ApiError(501, "characters are not supported", code="not_supported")

    async def _wait(self, video_id: str) -> None:
        async for _ in self.engine.watch(video_id):
            pass


async def disconnected(request: Request) -> None:
    """Returns when the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
