"""The routes of videos."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import msgspec
from starlette.datastructures import Headers, UploadFile
from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.routing import Route

from helios_serve.engine.async_engine import AsyncEngine
from helios_serve.engine.progress import Progress
from helios_serve.entrypoints.openai.bodies import convert, read_body, take_uploads
from helios_serve.entrypoints.openai.errors import ApiError, not_found
from helios_serve.entrypoints.openai.finished_files import FinishedFiles
from helios_serve.entrypoints.openai.protocol import (
    CreateVideo,
    ExtendVideo,
    PromptSwitchedAt,
    RemixVideo,
    SwitchPrompt,
    Video,
    VideoDeleted,
    VideoError,
    VideoList,
    WireStatus,
)
from helios_serve.entrypoints.openai.uploads import read_reference
from helios_serve.entrypoints.openai.video_requests import asked_size, creation, extension, remix
from helios_serve.errors import InvalidRequestError, RequestFailedError
from helios_serve.model_config import CHUNK_FRAMES
from helios_serve.sampling_params import Frames, VideoRequest
from helios_serve.store.jobs import StoredJob
from helios_serve.store.video_store import VideoStore

POLL_AFTER_MS = "1000"
MAX_PAGE, DEFAULT_PAGE = 100, 20
VARIANTS = {"video": "video/mp4", "thumbnail": "image/webp", "spritesheet": "image/jpeg"}


class VideoApi:
    """Handlers over one engine and its store; `files` are what is served whole."""

    def __init__(self, engine: AsyncEngine, store: VideoStore, files: FinishedFiles) -> None:
        self.engine = engine
        self.store = store
        self.files = files

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
            ("GET", f"{one}/content", self.content),
            ("GET", f"{one}/stream", self.stream),
        ]
        return [Route(path, handler, methods=[method]) for method, path, handler in table]

    async def create(self, request: Request) -> Response:
        """Accept a video, and answer at once."""
        return self._answer(await self._accept(await self._read_creation(request)))

    async def create_and_wait(self, request: Request) -> Response:
        """Make a video while the client waits; one that nobody waits for any more is ended."""
        asked = await self._read_creation(request)
        await self._accept(asked)
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
        path = await self._finished(await self._job(name), "video")
        return FileResponse(path, media_type=VARIANTS["video"], headers={"x-video-id": name})

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
            await self._job(after)
        jobs = await asyncio.to_thread(
            self.store.page, after, int(limit) + 1, newest_first=order == "desc"
        )
        videos = [await self._video(job) for job in jobs[: int(limit)]]
        return answer(
            VideoList(
                data=videos,
                first_id=videos[0].id if videos else None,
                last_id=videos[-1].id if videos else None,
                has_more=len(jobs) > int(limit),
            )
        )

    async def retrieve(self, request: Request) -> Response:
        video = await self._video(await self._job(request.path_params["video_id"]))
        headers = {} if video.status in ("completed", "failed") else POLL_HEADERS
        return answer(video, headers=headers)

    async def delete(self, request: Request) -> Response:
        """End it if it is being made, and forget it with all its files."""
        job = await self._job(request.path_params["video_id"])
        await self.engine.abort(job.id)
        await asyncio.to_thread(self.files.delete, job.id)
        await asyncio.to_thread(self.store.delete, job.id)
        return answer(VideoDeleted(id=job.id))

    async def cancel(self, request: Request) -> Response:
        """End it and keep what was made; one that is over stays as it is."""
        job = await self._job(request.path_params["video_id"])
        await self.engine.abort(job.id)
        return answer(await self._video(await self._job(job.id)))

    async def remix(self, request: Request) -> Response:
        """The same video under another prompt."""
        body = convert(await read_body(request), RemixVideo)
        job = await self._job(request.path_params["video_id"])
        source = await asyncio.to_thread(self.store.request, job.id)
        if source is None:
            raise not_found(job.id)
        return self._answer(await self._accept(remix(source, body.prompt)))

    async def extend(self, request: Request) -> Response:
        """More of a finished video: what comes is both, without a seam."""
        body = convert(await read_body(request), ExtendVideo)
        job = await self._job(body.video.get("id", ""))
        longer = extension(job.request, body)
        await self.engine.extend(job.id, longer)
        return self._answer(await self._video(await self._job(longer.request_id)))

    async def edit(self, request: Request) -> Response:
        """A video that goes on from an uploaded one, or from a finished one of ours."""
        fields = await read_body(request)
        uploads = take_uploads(fields)
        source = fields.pop("video", None)
        body = convert(fields, CreateVideo)
        if (upload := uploads.get("video")) is not None:
            return self._answer(await self._accept(await self._creation(body, upload)))
        if not isinstance(source, dict) or "id" not in source:
            raise InvalidRequestError("got no video, expected a file or video[id]", param="video")
        job = await self._job(str(source["id"]))
        with (await self._finished(job, "video")).open("rb") as file:
            kind = Headers({"content-type": VARIANTS["video"]})
            ours = UploadFile(file, filename="video.mp4", headers=kind)
            return self._answer(await self._accept(await self._creation(body, ours)))

    async def switch_prompt(self, request: Request) -> Response:
        """Turn a video in the making to another prompt; says from which chunk on."""
        body = convert(await read_body(request), SwitchPrompt)
        job = await self._job(request.path_params["video_id"])
        switch = await self.engine.switch_prompt(job.id, body.prompt, body.transition_chunks)
        first = switch.chunk * CHUNK_FRAMES
        return answer(PromptSwitchedAt(switch.prompt, switch.chunk, first))

    async def content(self, request: Request) -> Response:
        """The finished video, with ranges; or a picture of it."""
        variant = request.query_params.get("variant", "video")
        if variant not in VARIANTS:
            known = ", ".join(VARIANTS)
            raise InvalidRequestError(
                f"got variant {variant!r}, expected one of: {known}", param="variant"
            )
        job = await self._job(request.path_params["video_id"])
        return FileResponse(await self._finished(job, variant), media_type=VARIANTS[variant])

    async def stream(self, request: Request) -> Response:
        """A fragmented MP4 that grows while the video is made."""
        job = await self._job(request.path_params["video_id"])
        first = request.query_params.get("from_chunk", str(job.first_chunk))
        if not first.isdigit() or not job.first_chunk <= int(first) < job.num_chunks:
            raise InvalidRequestError(
                f"got from_chunk {first!r}, expected {job.first_chunk} to {job.num_chunks - 1}",
                param="from_chunk",
            )
        return StreamingResponse(self._stream(job.id, int(first)), media_type="video/mp4")

    async def refuse_characters(self, request: Request) -> Response:  # noqa: ARG002
        raise ApiError(501, "characters are not supported", code="not_supported")

    async def _read_creation(self, request: Request) -> VideoRequest:
        fields = await read_body(request)
        uploads = take_uploads(fields)
        unknown = uploads.keys() - {"input_reference"}
        if unknown:
            raise InvalidRequestError(
                f"got a file {min(unknown)!r}, expected input_reference", param=min(unknown)
            )
        return await self._creation(convert(fields, CreateVideo), uploads.get("input_reference"))

    async def _creation(self, body: CreateVideo, upload: UploadFile | None) -> VideoRequest:
        """Everything cheap is checked before the reference is decoded."""
        model = body.model or next(iter(self.engine.cores))
        size = asked_size(body, model)
        self.engine.check(creation(body, model, size, None, None))
        image: Frames | None = None
        video: Frames | None = None
        if upload is not None:
            image, video = await read_reference(upload, width=size.width, height=size.height)
        return creation(body, model, size, image, video)

    async def _accept(self, asked: VideoRequest) -> Video:
        await self.engine.submit(asked)
        return await self._video(await self._job(asked.request_id))

    async def _finished(self, job: StoredJob, variant: str) -> Path:
        """A file of what was made of a video that is over."""
        if not job.is_finished or not job.chunks:
            message = f"video {job.id} is {wire_status(job)} and has no content"
            raise ApiError(409, message, code="not_ready")
        return await asyncio.to_thread(self.files.get, job, variant)

    async def _wait(self, video_id: str) -> None:
        async for _ in self.engine.watch(video_id):
            pass

    async def _stream(self, video_id: str, first: int) -> AsyncIterator[bytes]:
        """What was made of a video that ends early is still a video."""
        is_first = True
        with suppress(RequestFailedError):
            async for chunk in self.engine.watch(video_id, first):
                assert chunk.segment is not None, "stored videos come in segments"
                yield (
                    chunk.segment.header + chunk.segment.fragment
                    if is_first
                    else (chunk.segment.fragment)
                )
                is_first = False

    async def _job(self, video_id: str) -> StoredJob:
        job = await asyncio.to_thread(self.store.job, video_id)
        if job is None:
            raise not_found(video_id)
        return job

    async def _video(self, job: StoredJob) -> Video:
        return describe(job, await self.engine.progress(job.id))

    def _answer(self, video: Video) -> Response:
        return answer(video, headers=POLL_HEADERS)


POLL_HEADERS = {"openai-poll-after-ms": POLL_AFTER_MS}


def answer(body: msgspec.Struct, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(body), 200, headers, media_type="application/json")


async def disconnected(request: Request) -> None:
    """Returns when the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def describe(job: StoredJob, progress: Progress | None) -> Video:
    """A job in the API's words; `progress` is there as long as the engine has it."""
    params, chunks = job.request.params, len(job.chunks)
    percent = 100 if job.status == "completed" else 0
    if progress is not None:
        percent = min(99, 100 * progress.steps_done // progress.total_steps)
    elif job.status != "completed":
        percent = 100 * chunks // job.num_chunks
    return Video(
        id=job.id,
        model=job.request.model or "",
        status=wire_status(job),
        progress=percent,
        created_at=int(job.created_at),
        completed_at=int(job.completed_at)
        if job.completed_at and job.status == "completed"
        else None,
        expires_at=None,
        error=video_error(job),
        prompt=job.request.prompt,
        remixed_from_video_id=job.request.parent if job.request.relation == "remix" else None,
        seconds=f"{params.num_frames / params.fps:g}",
        size=f"{params.width}x{params.height}",
        num_frames=params.num_frames,
        fps=params.fps,
        seed=params.seed,
        phase=wire_status(job) if progress is None else progress.phase,
        chunks_done=chunks,
        num_chunks=job.num_chunks,
        queue_position=None if progress is None else progress.queue_position,
        eta_seconds=None if progress is None else progress.eta_seconds,
    )


def wire_status(job: StoredJob) -> WireStatus:
    """A cancelled job is a failed one: pollers stop at no other word."""
    return "failed" if job.status == "cancelled" else job.status


def video_error(job: StoredJob) -> VideoError | None:
    if job.status == "cancelled":
        return VideoError("cancelled", "the video was cancelled; what was made of it is kept")
    if job.status == "failed":
        return VideoError("generation_failed", job.error or "the video could not be made")
    return None
