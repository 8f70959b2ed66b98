"""A server that answers at once, so that a client measures only its own delay.

    python -m helios_serve.benchmarks.targets.null_server [PORT [SECONDS]]

With SECONDS, it waits that long before each chunk, so that many sessions stay open.

It speaks `/v1/videos` with its stream, and the realtime WebSocket. Its videos have no pictures.
"""

import asyncio
import sys
from contextlib import suppress
from itertools import count
from typing import Any

import msgspec
from aiohttp import web

from helios_serve.benchmarks.targets.fragments import empty_fragment, empty_header
from helios_serve.model_config import frames_of_chunk, num_chunks

PAYLOAD = bytes(2000)
"""Content of a chunk: about as large as a chunk of nano."""


class NullServer:
    """Handlers of the routes. Videos are kept as their numbers of frames.

    `seconds` is the time before each chunk.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self._seconds = seconds
        self._numbers = count()
        self._frames: dict[str, int] = {}

    def app(self) -> web.Application:
        """Return the application."""
        app = web.Application(client_max_size=1 << 26)
        app.add_routes(
            [
                web.get("/openapi.json", self.openapi),
                web.post("/v1/videos", self.create),
                web.get("/v1/videos/{id}", self.retrieve),
                web.get("/v1/videos/{id}/stream", self.stream),
                web.get("/v1/realtime/video", self.realtime),
            ]
        )
        return app

    async def openapi(self, request: web.Request) -> web.Response:  # noqa: ARG002
        return json_response({"paths": {"/v1/videos/{video_id}/stream": {}}})

    async def create(self, request: web.Request) -> web.Response:
        fields = await read_fields(request)
        name = f"video_{next(self._numbers)}"
        self._frames[name] = int(fields.get("num_frames") or 33)
        return json_response({"id": name, "object": "video", "status": "queued"})

    async def retrieve(self, request: web.Request) -> web.Response:
        return json_response(
            {"id": request.match_info["id"], "object": "video", "status": "completed"}
        )

    async def stream(self, request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"content-type": "video/mp4"})
        await answer.prepare(request)
        await answer.write(empty_header())
        for frames in chunks_of(self._frames.pop(request.match_info["id"], 33)):
            await self._wait()
            await answer.write(empty_fragment(frames, PAYLOAD))
        await answer.write_eof()
        return answer

    async def realtime(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(compress=False)
        await socket.prepare(request)
        start = msgspec.json.decode(await socket.receive_str(), type=dict[str, Any])
        name = f"video_{next(self._numbers)}"
        await socket.send_json({"type": "video.start", "request_id": name})
        chunks = chunks_of(int(start.get("num_frames") or 33))
        for frames in chunks:
            await self._wait()
            await socket.send_json({"type": "video.chunk_metadata", "num_frames": frames})
            await socket.send_bytes(empty_fragment(frames, PAYLOAD))
        done = {"type": "session.done", "request_id": name, "chunks": len(chunks), "stopped": False}
        await socket.send_json(done)
        await socket.close()
        return socket

    async def _wait(self) -> None:
        if self._seconds:
            await asyncio.sleep(self._seconds)


def chunks_of(num_frames: int) -> list[int]:
    """Return the frames of each chunk of a video."""
    return [frames_of_chunk(num_frames, chunk).length for chunk in range(num_chunks(num_frames))]


async def read_fields(request: web.Request) -> dict[str, Any]:
    if request.content_type == "application/json":
        return msgspec.json.decode(await request.read(), type=dict[str, Any])
    return dict(await request.post())


def json_response(body: dict[str, Any]) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), content_type="application/json")


async def serve(port: int, seconds: float) -> None:
    """Serve until cancelled; the first line of the output is the URL."""
    runner = web.AppRunner(NullServer(seconds).app(), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        port, seconds, *_ = (*sys.argv[1:], "0", "0")
        asyncio.run(serve(int(port), float(seconds)))
