"""An HTTP server with the video API, whose videos follow a script."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import WSMsgType, web

from helios_serve.benchmarks.targets.fragments import empty_fragment, empty_header

PATHS = {"stream": "/v1/videos/{video_id}/stream", "events": "/v1/videos/{video_id}/events"}


class ScriptedServer:
    """Each video has chunks of `frames` frames, `delays` seconds after its creation.

    - `routes`: which of the routes `stream` and `events` exist.
    - `refuse`: status and body of every answer to a creation.
    - `fails_after`: videos fail after this many chunks.
    - `breaks_after`: connections are cut after this many chunks.

    `written` and `ended` are when the chunks of each video were written and when it ended, by
    time.perf_counter. `bodies` are the creations, `headers` their headers.
    """

    def __init__(
        self,
        delays: Sequence[float] = (0.0, 0.05, 0.1),
        *,
        frames: int = 33,
        routes: Sequence[str] = ("stream", "events"),
        refuse: tuple[int, dict[str, Any]] | None = None,
        fails_after: int | None = None,
        breaks_after: int | None = None,
    ) -> None:
        self.delays = delays
        self.frames = frames
        self.routes = routes
        self.refuse = refuse
        self.fails_after = fails_after
        self.breaks_after = breaks_after
        self.written: dict[str, list[float]] = {}
        self.ended: dict[str, float] = {}
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.calls: list[str] = []
        self.switched: list[str] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        """Serve on a port of its own, and yield the URL."""
        app = web.Application()
        app.add_routes(
            [
                web.get("/openapi.json", self.openapi),
                web.post("/v1/videos", self.create),
                web.get("/v1/videos/{id}", self.retrieve),
                web.post("/v1/videos/{id}/{action}", self.act),
                web.get("/v1/videos/{id}/stream", self.stream),
                web.get("/v1/videos/{id}/events", self.events),
                web.get("/v1/realtime/video", self.realtime),
            ]
        )
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()

    async def openapi(self, request: web.Request) -> web.Response:  # noqa: ARG002
        return web.json_response({"paths": {PATHS[route]: {} for route in self.routes}})

    async def create(self, request: web.Request) -> web.Response:
        is_json = request.content_type == "application/json"
        self.bodies.append(await request.json() if is_json else dict(await request.post()))
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        if self.refuse is not None:
            return web.json_response(self.refuse[1], status=self.refuse[0])
        name = f"video_{len(self.written)}"
        self.written[name] = []
        self.ended[name] = time.perf_counter() + self.delays[-1]
        return web.json_response({"id": name, "status": "queued"})

    async def retrieve(self, request: web.Request) -> web.Response:
        name = request.match_info["id"]
        body: dict[str, Any] = {"id": name, "status": "in_progress"}
        if time.perf_counter() >= self.ended[name]:
            body["status"] = "completed"
        if self.fails_after is not None:
            body |= {"status": "failed", "error": {"code": "broken", "message": "it broke"}}
        return web.json_response(body)

    async def act(self, request: web.Request) -> web.Response:
        """Cancel a video, or switch its prompt from the third chunk on."""
        self.calls.append(request.path)
        if request.match_info["action"] == "prompt":
            self.switched.append((await request.json())["prompt"])
            return web.json_response({"chunk": 2})
        return web.json_response({"id": request.match_info["id"], "status": "failed"})

    async def stream(self, request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        await answer.write(empty_header())
        async for _ in self._chunks(request.match_info["id"], request):
            data = empty_fragment(self.frames, bytes(100_000))
            await answer.write(data[:50_000])
            await answer.write(data[50_000:])
        return answer

    async def events(self, request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await answer.prepare(request)
        await answer.write(b"retry: 2000\n\n: keep-alive\n\n")
        async for index in self._chunks(request.match_info["id"], request):
            event = {"type": "video.chunk", "chunk": index, "num_frames": self.frames}
            await answer.write(f"event: video.chunk\ndata: {json.dumps(event)}\n\n".encode())
        return answer

    async def realtime(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self.bodies.append(await socket.receive_json())
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        if self.refuse is not None:
            await socket.send_json({"type": "error"} | self.refuse[1])
            return socket
        name = f"video_{len(self.written)}"
        self.written[name] = []
        await socket.send_json({"type": "video.start", "request_id": name})
        started: list[str] = []
        listening = asyncio.create_task(self._listen(socket, started))
        async for _ in self._chunks(name, request):
            metadata = {"num_frames": self.frames, "kind": "media", "started_event_ids": started[:]}
            started.clear()
            await socket.send_json({"type": "video.chunk_metadata"} | metadata)
            await socket.send_bytes(bytes(100_000))
        metadata = {"num_frames": 0, "kind": "trailer", "started_event_ids": []}
        await socket.send_json({"type": "video.chunk_metadata"} | metadata)
        await socket.send_bytes(b"trailer")
        stopped = self.fails_after is not None
        await socket.send_json({"type": "session.done", "stopped": stopped})
        listening.cancel()
        return socket

    async def _listen(self, socket: web.WebSocketResponse, started: list[str]) -> None:
        async for message in socket:
            assert message.type is WSMsgType.TEXT
            told = message.json()
            self.calls.append(told["type"])
            if told["type"] == "session.interaction":
                started.append(told["interaction"]["event_id"])
                self.switched.append(told["interaction"]["event"]["prompt"])

    async def _chunks(self, name: str, request: web.Request) -> AsyncIterator[int]:
        """Yield the number of each chunk at the time at which it is due."""
        began = time.perf_counter()
        for index, delay in enumerate(self.delays):
            if index == self.fails_after:
                return
            await asyncio.sleep(began + delay - time.perf_counter())
            if index == self.breaks_after:
                assert request.transport is not None
                request.transport.abort()
            self.written[name].append(time.perf_counter())
            yield index
