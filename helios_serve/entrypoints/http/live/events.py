"""The route of a video's events: what happens to it, as server-sent events."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from helios_serve.engine.requests.progress import Progress
from helios_serve.entrypoints.http.authentication import tenant_of
from helios_serve.entrypoints.http.live.event_position import EventPosition, position_of
from helios_serve.entrypoints.http.operations import FROM_CHUNK, VIDEO, Operation
from helios_serve.model_config import frames_of_chunk
from helios_serve.service.protocol import Video
from helios_serve.service.videos.video_object import video_object
from helios_serve.service.videos.videos import Videos
from helios_serve.store.jobs import StoredJob

RETRY_MS = 2000
"""After which a client that has lost the connection should come again."""
LOOK_SECONDS = 1.0
"""How often progress is looked at; chunks and the end are told at once."""
KEEP_ALIVE_SECONDS = 15.0
"""Longest silence: proxies cut connections on which nothing comes."""
EVENT_STREAM = "text/event-stream"
HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


class ChunkEvent(msgspec.Struct, tag_field="type", tag="video.chunk"):
    """A chunk can be had: `num_frames` frames from `first_frame` on."""

    video_id: str
    chunk: int
    num_chunks: int
    first_frame: int
    num_frames: int


class PromptSwitchedEvent(msgspec.Struct, tag_field="type", tag="video.prompt_switched"):
    """From `chunk` on, whose first frame is `frame`, the video turns to `prompt`."""

    video_id: str
    prompt: str
    chunk: int
    frame: int


class ProgressEvent(msgspec.Struct, tag_field="type", tag="video.progress"):
    """How far it is; `queue_position` counts from 1 while it waits for a worker."""

    video_id: str
    status: str
    phase: str
    progress: int
    chunks_done: int
    num_chunks: int
    queue_position: int | None
    eta_seconds: float | None


class QueuedEvent(ProgressEvent, tag="video.queued"):
    """As `ProgressEvent`, before anything was done."""


class EndEvent(msgspec.Struct):
    """It is over; nothing comes behind it."""

    type: str
    video: Video


class DeletedEvent(msgspec.Struct, tag_field="type", tag="video.deleted"):
    """It was deleted; nothing comes behind it."""

    video_id: str


class EventsApi:
    """Handlers over the sender's videos; streams end when the server is `closing`."""

    def __init__(self, videos: Videos, closing: asyncio.Event) -> None:
        self.videos = videos
        self.closing = closing

    @property
    def operations(self) -> tuple[Operation, ...]:
        return (
            Operation(
                "GET",
                f"{VIDEO}/events",
                self.events,
                "Follow a video as server-sent events; 204 after the last one",
                EVENT_STREAM,
                query=FROM_CHUNK,
            ),
        )

    async def events(self, request: Request) -> Response:
        """Everything from the beginning on, or behind `Last-Event-ID`; 204 if nothing is left."""
        job = await self.videos.find(request.path_params["video_id"], tenant_of(request))
        position = position_of(request, job)
        if position.is_end and job.is_finished:
            return Response(status_code=204)  # an EventSource comes again at any other answer
        return StreamingResponse(
            self._stream(job.id, position), media_type=EVENT_STREAM, headers=HEADERS
        )

    async def _stream(self, video_id: str, position: EventPosition) -> AsyncIterator[str]:
        """Told from the store, so a reader that is slow takes no memory and holds up nobody."""
        loop = asyncio.get_running_loop()
        yield f"retry: {RETRY_MS}\n\n"
        told, spoken_at = None, loop.time()
        while not self.closing.is_set():
            change = self.videos.engine.changes(video_id)  # before the look: it misses nothing
            job = await asyncio.to_thread(self.videos.store.job, video_id)
            if job is None:
                yield encode_event(DeletedEvent(video_id))
                return
            progress = await self.videos.engine.progress(video_id)
            events = list(events_after(job, position))
            if job.is_finished:
                position.tell_end()
                video = video_object(job, None, self.videos.retention)
                end = encode_event(EndEvent(f"video.{job.status}", video), position)
                yield "".join((*events, end))
                return
            how_far = progress_event(job, progress)
            if how_far != told:
                events.append(encode_event(how_far))
                told = how_far
            if not events and loop.time() - spoken_at >= KEEP_ALIVE_SECONDS:
                events.append(": keep-alive\n\n")
            if events:
                yield "".join(events)
                spoken_at = loop.time()
            await self.videos.wait_for(change or self.closing, LOOK_SECONDS)


def events_after(job: StoredJob, position: EventPosition) -> Iterator[str]:
    """Chunks and prompt switches behind `position`, which goes along.

    A switch is told when the chunk before it was. One that is replaced by another until its chunk
    is made is followed by that one.
    """
    params = job.request.params
    switches = {switch.chunk: switch for switch in params.switches}
    while True:
        coming = position.chunk + 1
        switch = switches.get(coming)
        is_sure = coming < job.next_chunk or not job.is_finished
        if switch is not None and is_sure and position.tell_switch(switch):
            frame = frames_of_chunk(params.num_frames, coming).first
            told = PromptSwitchedEvent(job.id, switch.prompt, coming, frame)
            yield encode_event(told, position)
        if coming >= job.next_chunk:
            return
        position.tell_chunk(coming)
        first, length = frames_of_chunk(params.num_frames, coming)
        chunk = ChunkEvent(job.id, coming, job.num_chunks, first, length)
        yield encode_event(chunk, position)


def progress_event(job: StoredJob, progress: Progress | None) -> ProgressEvent:
    video = video_object(job, progress)
    waits = video.status == "queued" and video.phase in ("queued", "encoding")
    kind = QueuedEvent if waits and not video.progress else ProgressEvent
    return kind(
        video.id,
        video.status,
        video.phase,
        video.progress,
        video.chunks_done,
        video.num_chunks,
        video.queue_position,
        video.eta_seconds,
    )


def encode_event(event: msgspec.Struct, position: EventPosition | None = None) -> str:
    """An event on the wire; what could be told twice has an id. JSON has no line breaks."""
    number = "" if position is None else f"id: {position}\n"
    name = event.type if isinstance(event, EndEvent) else event.__struct_config__.tag
    return f"{number}event: {name}\ndata: {msgspec.json.encode(event).decode()}\n\n"
