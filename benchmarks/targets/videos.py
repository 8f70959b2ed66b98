"""Jobs over HTTP: create a video, and watch it by its media, its events, or polls."""

import asyncio
import json
from contextlib import suppress
from typing import Any
from uuid import uuid4

import aiohttp
import msgspec

from helios_serve.benchmarks.load.clock import LoadClock
from helios_serve.benchmarks.load.request import SessionRequest
from helios_serve.benchmarks.measure.record import ChunkRecord, SessionRecord, SwitchRecord
from helios_serve.benchmarks.targets.dialects import MULTIPART, VIDEOS, body_of
from helios_serve.benchmarks.targets.fragments import FragmentReader
from helios_serve.benchmarks.targets.server import Server
from helios_serve.benchmarks.targets.target import (
    SessionFailedError,
    SessionRefusedError,
    UnreachableError,
)
from helios_serve.options.benchmarks import Timing

DONE = ("completed", "succeeded")
ENDED = (*DONE, "failed", "cancelled", "canceled", "expired")


class VideosTarget:
    """Sessions are jobs of `POST /v1/videos`."""

    def __init__(self, server: Server, timing: Timing, clock: LoadClock) -> None:
        self.server = server
        self.timing = timing
        self.clock = clock

    async def run(self, request: SessionRequest, record: SessionRecord) -> None:
        """Create a video, and watch it to its end."""
        body = body_of(request, self.server.options)
        is_form = self.server.options.backend in MULTIPART
        sent: dict[str, Any] = {"data": form_of(body)} if is_form else {"json": body}
        record.sent = self.clock.now()
        video = await self._video("POST", VIDEOS, record, **sent)
        record.accepted = self.clock.now()
        record.video_id = str(video["id"])
        switching = asyncio.create_task(self._switch(request, record))
        try:
            match self.timing:
                case "media":
                    await self._watch_media(record)
                case "events":
                    await self._watch_events(record)
                case "poll":
                    await self._poll(record)
        finally:
            switching.cancel()
            await asyncio.wait((switching,))

    async def leave(self, record: SessionRecord) -> None:
        """Cancel the job, or delete it if the server has no route for that."""
        if record.video_id is None:
            return
        path = f"{VIDEOS}/{record.video_id}"
        with suppress(SessionRefusedError, UnreachableError):
            try:
                await self.server.json("POST", f"{path}/cancel", record.tenant)
            except (SessionFailedError, ValueError) as error:
                if not isinstance(error, UnreachableError):
                    with suppress(SessionFailedError, ValueError):
                        await self.server.json("DELETE", path, record.tenant)

    async def _video(
        self, method: str, path: str, record: SessionRecord, **body: Any
    ) -> dict[str, Any]:
        """Send a request that is answered by a Video. Raises SessionFailedError."""
        try:
            video = await self.server.json(method, path, record.tenant, **body)
        except ValueError as error:
            raise SessionFailedError("invalid_answer", f"{path}: {error}") from error
        if not {"id", "status"} <= video.keys():
            raise SessionFailedError("invalid_answer", f"{path}: expected a Video, got {video}")
        return video

    async def _watch_media(self, record: SessionRecord) -> None:
        """Read the growing MP4. A chunk counts as received when its last byte arrives."""
        reader = FragmentReader()
        path = f"{VIDEOS}/{record.video_id}/stream"
        async with self.server.request("GET", path, record.tenant) as answer:
            async for data in answer.content.iter_any():
                at = self.clock.now()
                try:
                    fragments = reader.feed(data)
                except ValueError as error:
                    raise SessionFailedError("invalid_media", str(error)) from error
                for fragment in fragments:
                    self._note_chunk(record, ChunkRecord(at, fragment.frames, fragment.size))
        await self._check_end(record)

    async def _watch_events(self, record: SessionRecord) -> None:
        """Read server-sent events. A chunk counts as received when its event arrives."""
        path = f"{VIDEOS}/{record.video_id}/events"
        async with self.server.request("GET", path, record.tenant) as answer:
            async for line in lines_of(answer):
                at = self.clock.now()
                if not line.startswith(b"data:"):
                    continue
                event = json.loads(line[5:])
                if event.get("type") == "video.chunk":
                    self._note_chunk(record, ChunkRecord(at, int(event["num_frames"]), 0))
        await self._check_end(record)

    async def _check_end(self, record: SessionRecord) -> None:
        """Raise SessionFailedError if the video ended early."""
        if record.frames < record.num_frames:
            check_video(await self._video("GET", f"{VIDEOS}/{record.video_id}", record))
            raise SessionFailedError(
                "incomplete", f"got {record.frames} frames, expected {record.num_frames}"
            )

    async def _poll(self, record: SessionRecord) -> None:
        """Poll the status. The true end lies between the last two polls."""
        before = record.accepted or 0.0
        while True:
            await asyncio.sleep(self.server.options.poll_interval)
            sent = self.clock.now()
            video = await self._video("GET", f"{VIDEOS}/{record.video_id}", record)
            if video["status"] in ENDED:
                check_video(video)
                record.polled = (before, self.clock.now())
                return
            before = sent

    async def _switch(self, request: SessionRequest, record: SessionRecord) -> None:
        """Switch the prompt at its times. A switch that the server rejects is never `seen`."""
        for milliseconds, prompt in request.switches:
            await self.clock.sleep_until(record.intended + milliseconds / 1000)
            switch = SwitchRecord(uuid4().hex, self.clock.now())
            record.switches.append(switch)
            with suppress(SessionFailedError, SessionRefusedError, ValueError, KeyError):
                answer = await self.server.json(
                    "POST",
                    f"{VIDEOS}/{record.video_id}/prompt",
                    record.tenant,
                    json={"prompt": prompt},
                )
                switch.chunk = int(answer["chunk"])
                if switch.chunk < len(record.chunks):
                    switch.seen = record.chunks[switch.chunk].at

    def _note_chunk(self, record: SessionRecord, chunk: ChunkRecord) -> None:
        if not chunk.frames:
            return
        for switch in record.switches:
            if switch.seen is None and switch.chunk == len(record.chunks):
                switch.seen = chunk.at
        record.chunks.append(chunk)


def check_video(video: dict[str, Any]) -> None:
    """Raise SessionFailedError unless the video is complete."""
    if video["status"] not in DONE:
        error = video.get("error") or {}
        known = isinstance(error, dict)
        raise SessionFailedError(
            str(error.get("code", video["status"]) if known else video["status"]),
            str(error.get("message", video["status"]) if known else error),
        )


def form_of(fields: dict[str, Any]) -> aiohttp.FormData:
    """Return a form, in which objects are JSON."""
    form = aiohttp.FormData(default_to_multipart=True)
    for name, value in fields.items():
        is_object = isinstance(value, dict)
        form.add_field(name, msgspec.json.encode(value).decode() if is_object else str(value))
    return form


async def lines_of(answer: aiohttp.ClientResponse) -> Any:
    """Yield the lines of a response, however long they are."""
    rest = b""
    async for data in answer.content.iter_any():
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield line
