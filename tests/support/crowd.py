"""Many concurrent clients of one server, each with a random sequence of requests."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx2 as httpx
from websockets.asyncio.client import ClientConnection, connect

PATIENCE = 180.0
"""Timeout of responses, in seconds."""
POLL_SECONDS = (0.2, 1.0)
WAIT_SECONDS = (0.5, 3.0)
"""Used in place of the server's retry-after, because frequent retries are more load."""
LENGTHS = (33, 40)
"""Lengths of videos: one chunk, and two."""
STEPS = [1, 1, 1]
"""As few steps as possible, so that many videos start and end."""


class ClosingTimeError(Exception):
    """The run ended while a client waited for capacity."""


class Crowd:
    """`size` clients, each with a random sequence drawn from `seed`.

    Videos in `wanted` must be completed, and those in `deleted` must not exist. Those in `given_up`
    were cancelled, or their client has left: they may end in any way.
    """

    def __init__(self, url: str, size: int, seed: int) -> None:
        self.url = url
        self.size = size
        self.seed = seed
        self.wanted: set[str] = set()
        self.given_up: set[str] = set()
        self.deleted: set[str] = set()
        self.done: Counter[str] = Counter()
        """The number of times that each action was done."""
        self.refused: Counter[str] = Counter()
        self.end = 0.0

    async def run(self, seconds: float) -> None:
        """Run for `seconds`, and until each client has finished its current action."""
        self.end = asyncio.get_running_loop().time() + seconds
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=self.size)
        async with (
            httpx.AsyncClient(
                base_url=self.url, timeout=PATIENCE, limits=limits, verify=False
            ) as http,
            asyncio.TaskGroup() as clients,
        ):
            for index in range(self.size):
                clients.create_task(Client(self, http, self.seed + index).run())


class Client:
    """One client of the crowd."""

    def __init__(self, crowd: Crowd, http: httpx.AsyncClient, seed: int) -> None:
        self.crowd = crowd
        self.http = http
        self.random = random.Random(seed)

    async def run(self) -> None:
        habits: list[Callable[[], Awaitable[None]]] = [
            self.poll_and_download,
            self.read_stream,
            self.leave_stream,
            self.read_events,
            self.leave_events,
            self.play_hls,
            self.cancel,
            self.delete,
            self.leave_sync,
            self.create_and_leave,
            self.finish_session,
            self.vanish_from_session,
        ]
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self.random.uniform(0, 1))
        with suppress(ClosingTimeError):
            while loop.time() < self.crowd.end:
                habit = self.random.choice(habits)
                await habit()
                self.crowd.done[habit.__name__] += 1

    async def poll_and_download(self) -> None:
        name = await self.create()
        while (video := (await self.get(f"/v1/videos/{name}")).json())["status"] != "completed":
            assert video["status"] in ("queued", "in_progress"), video
            await self.pause(POLL_SECONDS)
        content = await self.get(f"/v1/videos/{name}/content")
        assert content.content[4:8] == b"ftyp"
        assert len(content.content) == int(content.headers["content-length"])

    async def read_stream(self) -> None:
        name = await self.create()
        parts = (await self.get(f"/v1/videos/{name}/stream")).content
        video = (await self.get(f"/v1/videos/{name}")).json()
        assert parts.count(b"moof") == video["chunks_done"] == video["num_chunks"], video

    async def leave_stream(self) -> None:
        name = await self.create()
        async with self.opened(f"/v1/videos/{name}/stream") as answer:
            if self.random.random() < 0.5:
                await anext(answer.aiter_raw(), b"")
            else:
                await self.pause((0.0, 2.0))

    async def read_events(self) -> None:
        name = await self.create()
        async with self.opened(f"/v1/videos/{name}/events") as answer:
            names = [line[7:] async for line in answer.aiter_lines() if line.startswith("event: ")]
        chunks = names.count("video.chunk")
        assert (names[-1], chunks in (1, 2)) == ("video.completed", True), names

    async def leave_events(self) -> None:
        name = await self.create()
        left = self.random.randrange(1, 12)
        async with self.opened(f"/v1/videos/{name}/events") as answer:
            async for _ in answer.aiter_lines():
                left -= 1
                if not left:
                    break

    async def play_hls(self) -> None:
        """Play a video by HLS. Some clients stop in the middle."""
        folder = f"/v1/videos/{await self.create()}/hls"
        seen: set[str] = set()
        while True:
            answer = await self.http.get(f"{folder}/index.m3u8")
            if answer.status_code == 503:
                await self.pause(WAIT_SECONDS)
                continue
            lines = answer.raise_for_status().text.splitlines()
            for segment in [line for line in lines if line.endswith(".m4s") and line not in seen]:
                seen.add(segment)
                assert b"moof" in (await self.get(f"{folder}/{segment}")).content
                if self.random.random() < 0.3:
                    return
            if lines[-1] == "#EXT-X-ENDLIST":
                assert b"moov" in (await self.get(f"{folder}/init.mp4")).content
                return
            await self.pause(POLL_SECONDS)

    async def cancel(self) -> None:
        name = await self.create()
        await self.pause((0.0, 2.0))
        self.give_up(name)
        video = (await self.http.post(f"/v1/videos/{name}/cancel")).raise_for_status().json()
        assert video["status"] in ("completed", "failed"), video

    async def delete(self) -> None:
        name = await self.create()
        await self.pause((0.0, 2.0))
        self.crowd.wanted.discard(name)
        (await self.http.delete(f"/v1/videos/{name}")).raise_for_status()
        self.crowd.deleted.add(name)
        assert (await self.http.get(f"/v1/videos/{name}")).status_code == 404

    async def leave_sync(self) -> None:
        """Disconnect while waiting for a video. The server aborts it, and its id is unknown."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self.random.uniform(0.1, 3.0)):
                answer = await self.http.post("/v1/videos/sync", json=self.body())
                self.check_room(answer)

    async def create_and_leave(self) -> None:
        """Disconnect before the response. A video that was accepted is generated in any case."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self.random.uniform(0.001, 0.05)):
                answer = await self.http.post("/v1/videos", json=self.body())
                if self.check_room(answer):
                    self.crowd.wanted.add(answer.json()["id"])

    async def finish_session(self) -> None:
        async with self.session() as (socket, name):
            self.crowd.wanted.add(name)
            while (message := json.loads(await socket.recv()))["type"] != "session.done":
                assert message["type"] == "video.chunk_metadata", message
                assert len(await socket.recv()) == message["byte_length"]
            assert message["stopped"] is False

    async def vanish_from_session(self) -> None:
        """Abort the connection of a session, as if a cable was cut."""
        async with self.session() as (socket, name):
            self.give_up(name)
            with suppress(TimeoutError):
                async with asyncio.timeout(self.random.uniform(0.0, 2.0)):
                    await socket.recv()
            socket.transport.abort()

    async def create(self) -> str:
        """Create a video. Retries until there is capacity."""
        while not self.check_room(answer := await self.http.post("/v1/videos", json=self.body())):
            await self.wait_for_room()
        name: str = answer.json()["id"]
        self.crowd.wanted.add(name)
        return name

    def check_room(self, answer: httpx.Response) -> bool:
        """Return whether there was capacity. Any other error raises."""
        if answer.status_code not in (429, 503):
            answer.raise_for_status()
            return True
        self.refuse(answer.json()["error"]["code"])
        assert int(answer.headers["retry-after"]) >= 1
        return False

    async def wait_for_room(self) -> None:
        await self.pause(WAIT_SECONDS)
        if asyncio.get_running_loop().time() > self.crowd.end:
            raise ClosingTimeError

    def refuse(self, code: str) -> None:
        assert code in ("queue_full", "tenant_quota", "realtime_capacity"), code
        self.crowd.refused[code] += 1

    @asynccontextmanager
    async def session(self) -> AsyncIterator[tuple[ClientConnection, str]]:
        """Yield a connection whose session has started, and the id of its video."""
        address = f"{self.crowd.url.replace('http', 'ws', 1)}/v1/realtime/video"
        async with connect(address, max_size=None, open_timeout=PATIENCE) as socket:
            while True:
                await socket.send(json.dumps({"type": "session.start", **self.body()}))
                message: dict[str, Any] = json.loads(await socket.recv())
                if message["type"] == "video.start":
                    break
                self.refuse(message["code"])
                await self.wait_for_room()
            yield socket, message["request_id"]

    @asynccontextmanager
    async def opened(self, path: str) -> AsyncIterator[httpx.Response]:
        async with self.http.stream("GET", path) as answer:
            yield answer.raise_for_status()

    async def get(self, path: str) -> httpx.Response:
        return (await self.http.get(path)).raise_for_status()

    def body(self) -> dict[str, Any]:
        return {
            "prompt": f"waves {self.random.randrange(1000)}",
            "size": "64x64",
            "num_frames": self.random.choice(LENGTHS),
            "steps": STEPS,
            "seed": self.random.randrange(1000),
        }

    def give_up(self, name: str) -> None:
        self.crowd.wanted.discard(name)
        self.crowd.given_up.add(name)

    async def pause(self, bounds: tuple[float, float]) -> None:
        await asyncio.sleep(self.random.uniform(*bounds))
