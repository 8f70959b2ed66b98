"""Route of a video's events, as server-sent events."""

import asyncio
import re
import zlib
from collections.abc import AsyncIterator, Iterator

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from helios_serve.engine.requests.progress import Progress
from helios_serve.entrypoints.http.authentication import tenant_of
from helios_serve.entrypoints.http.operations import FROM_CHUNK, VIDEO, Operation
from helios_serve.entrypoints.http.queries import first_chunk_query
from helios_serve.entrypoints.http.responses import live_response
from helios_serve.errors import InvalidRequestError
from helios_serve.model_config import frames_of_chunk
from helios_serve.options.sampling import PromptSwitch
from helios_serve.service.protocol import Video
from helios_serve.service.videos.video_object import video_object
from helios_serve.service.videos.videos import Videos
from helios_serve.store.jobs import StoredJob

RETRY_MS = 2000
"""Milliseconds after which a client reconnects if the connection is lost."""
POLL_SECONDS = 1.0
"""Seconds between progress checks. Chunks and the end are sent at once."""
KEEP_ALIVE_SECONDS = 15.0
"""Maximum seconds without data: proxies close idle connections."""
EVENT_STREAM = "text/event-stream"
HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
ID = re.compile(r"(-1|[0-9]{1,9})(?::([0-9a-f]{8}|end))?")
END = "end"


class EventPosition:
    """The last event that a client has received: the events of chunk `chunk`, and `marker` after
    it.

    `marker` identifies a prompt switch that was reported after the chunk, or is "end". As text, a
    position is the chunk's number and the marker: `7`, `7:5f0c1a2b`, `7:end`. Before the first
    chunk, `chunk` is -1.
    """

    def __init__(self, chunk: int, marker: str | None = None) -> None:
        self.chunk = chunk
        self.marker = marker

    def __str__(self) -> str:
        return f"{self.chunk}" if self.marker is None else f"{self.chunk}:{self.marker}"

    @property
    def is_end(self) -> bool:
        return self.marker == END

    def pass_chunk(self, chunk: int) -> None:
        self.chunk, self.marker = chunk, None

    def pass_switch(self, switch: PromptSwitch) -> bool:
        """Move past a switch after the chunk. Return whether it was not reported before."""
        marker = f"{zlib.crc32(msgspec.msgpack.encode(switch)):08x}"
        is_new = marker != self.marker
        self.marker = marker
        return is_new

    def skip_deleted(self, job: StoredJob) -> None:
        """Move past the chunks that a video without an end does not keep any more."""
        if job.is_endless and self.chunk < job.shown_chunks.start - 1:
            self.pass_chunk(job.shown_chunks.start - 1)

    def pass_end(self) -> None:
        self.marker = END


def position_of(request: Request, job: StoredJob) -> EventPosition:
    """Return the position given by `Last-Event-ID`, else by `from_chunk`, else the beginning.

    Raises InvalidRequestError for a position that the video does not have.
    """
    start = job.first_chunk
    if (last := request.headers.get("last-event-id")) is not None:
        match = ID.fullmatch(last)
        oldest = 0 if job.is_endless else start
        if match is None or not oldest - 1 <= int(match[1]) < job.num_chunks:
            raise InvalidRequestError(
                f"got Last-Event-ID {last!r}, expected the id of an event of this video",
                param="last-event-id",
            )
        return EventPosition(int(match[1]), match[2])
    return EventPosition(first_chunk_query(request, job) - 1)


class ChunkEvent(msgspec.Struct, tag_field="type", tag="video.chunk"):
    """A chunk is available: `num_frames` frames from `first_frame` on."""

    video_id: str
    chunk: int
    num_chunks: int | None
    first_frame: int
    num_frames: int


class PromptSwitchedEvent(msgspec.Struct, tag_field="type", tag="video.prompt_switched"):
    """The prompt changes to `prompt` at `chunk`, whose first frame is `frame`."""

    video_id: str
    prompt: str
    chunk: int
    frame: int


class ProgressEvent(msgspec.Struct, tag_field="type", tag="video.progress"):
    """Progress of the video. `queue_position` counts from 1 while the video waits for a worker."""

    video_id: str
    status: str
    phase: str
    progress: int
    chunks_done: int
    num_chunks: int | None
    queue_position: int | None
    eta_seconds: float | None


class QueuedEvent(ProgressEvent, tag="video.queued"):
    """The same as `ProgressEvent`, before any work is done."""


class EndEvent(msgspec.Struct):
    """The video ended. This is the last event."""

    type: str
    video: Video


class DeletedEvent(msgspec.Struct, tag_field="type", tag="video.deleted"):
    """The video was deleted. This is the last event."""

    video_id: str


class EventsApi:
    """Handlers for the events of the tenant's videos. Streams end when `closing` is set."""

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
                "Stream a video's events (server-sent events); 204 after the last one",
                EVENT_STREAM,
                query=FROM_CHUNK,
            ),
        )

    async def events(self, request: Request) -> Response:
        """Stream all events after `Last-Event-ID`, or from the first one on; 204 if there
        are none.
        """
        job = await self.videos.find(request.path_params["video_id"], tenant_of(request))
        position = position_of(request, job)
        if position.is_end and job.is_finished:
            return Response(status_code=204)  # an EventSource reconnects after any other response
        return live_response(request, self._stream(job.id, position), EVENT_STREAM, HEADERS)

    async def _stream(self, video_id: str, position: EventPosition) -> AsyncIterator[str]:
        """Yield the events after a position.

        They are read from the store, so a slow client uses no memory and delays nothing.
        """
        loop = asyncio.get_running_loop()
        yield f"retry: {RETRY_MS}\n\n"
        last_progress, sent_at = None, loop.time()
        while not self.closing.is_set():
            self.videos.engine.note_view(video_id)
            # Requested before the job is read, so that no change is missed.
            change = self.videos.engine.changes(video_id)
            job = await asyncio.to_thread(self.videos.store.job, video_id)
            if job is None:
                yield encode_event(DeletedEvent(video_id))
                return
            progress = await self.videos.engine.progress(video_id)
            events = list(events_after(job, position))
            if job.is_finished:
                position.pass_end()
                video = video_object(job, None, self.videos.retention)
                end = encode_event(EndEvent(f"video.{job.status}", video), position)
                yield "".join((*events, end))
                return
            current_progress = progress_event(job, progress)
            if current_progress != last_progress:
                events.append(encode_event(current_progress))
                last_progress = current_progress
            if not events and loop.time() - sent_at >= KEEP_ALIVE_SECONDS:
                events.append(": keep-alive\n\n")
            if events:
                yield "".join(events)
                sent_at = loop.time()
            await self.videos.wait_for(change or self.closing, POLL_SECONDS)


def events_after(job: StoredJob, position: EventPosition) -> Iterator[str]:
    """Yield the chunk and prompt switch events after `position`, and advance it.

    A switch is reported after the chunk before it. If it is replaced before its chunk is generated,
    the new switch is reported, too.
    """
    params, count = job.request.params, None if job.is_endless else job.num_chunks
    position.skip_deleted(job)
    switches = {switch.chunk: switch for switch in params.switches}
    while True:
        chunk = position.chunk + 1
        switch = switches.get(chunk)
        takes_effect = chunk < job.next_chunk or not job.is_finished
        if switch is not None and takes_effect and position.pass_switch(switch):
            frame = frames_of_chunk(params.num_frames, chunk).first
            yield encode_event(PromptSwitchedEvent(job.id, switch.prompt, chunk, frame), position)
        if chunk >= job.next_chunk:
            return
        position.pass_chunk(chunk)
        first, length = frames_of_chunk(params.num_frames, chunk)
        yield encode_event(ChunkEvent(job.id, chunk, count, first, length), position)


def progress_event(job: StoredJob, progress: Progress | None) -> ProgressEvent:
    """Return the progress event of a job, or the queued event before any work is done."""
    video = video_object(job, progress)
    is_waiting = video.status == "queued" and video.phase in ("queued", "encoding")
    kind = QueuedEvent if is_waiting and not video.progress else ProgressEvent
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
    """Encode an event as SSE text. Events with a position have an id, so that none is sent twice.

    The JSON contains no line breaks, which would end the data field.
    """
    number = "" if position is None else f"id: {position}\n"
    name = event.type if isinstance(event, EndEvent) else event.__struct_config__.tag
    return f"{number}event: {name}\ndata: {msgspec.json.encode(event).decode()}\n\n"
