"""Sessions that are paced by what a viewer has seen, in virtual time."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple

import pytest

from helios_serve.benchmarks.simulator.virtual_time import run_virtual
from helios_serve.engine.observe.request_metrics import RequestMetrics
from helios_serve.engine.requests.active_requests import RequestHandle
from helios_serve.engine.requests.chunk_stream import ChunkStream, VideoChunk
from helios_serve.engine.requests.viewer import Viewer
from helios_serve.metrics import Metrics
from helios_serve.options.realtime import Pacing
from helios_serve.video_request import VideoRequest
from tests.support.engines import request

FPS = 33
"""Frames per second, so that a chunk plays for one second."""
STEPS = 5
CHUNKS = 8


class FakeThread:
    """An engine thread whose scheduler only records whether the video is paused."""

    def __init__(self) -> None:
        self.core: Any = self
        self.scheduler: Any = self
        self.going = asyncio.Event()
        self.going.set()

    def call(self, function: Callable[[Any], None]) -> "Future[None]":
        function(self)
        return Future()

    def pause(self, request_id: str) -> None:  # noqa: ARG002
        self.going.clear()

    def resume(self, request_id: str) -> None:  # noqa: ARG002
        self.going.set()


class Watched(NamedTuple):
    """When each chunk was started, and when it arrived, in seconds."""

    begun: list[float]
    arrived: list[float]


def watched(wanted: VideoRequest, step_seconds: float) -> Watched:
    """Generate a video with steps of `step_seconds` each, for a client that reads without delay."""

    async def main() -> Watched:
        thread: Any = FakeThread()
        stream = ChunkStream("a", 0, 0)
        handle = RequestHandle(wanted, thread, stream, RequestMetrics(Metrics(), "nano", wanted))
        found = Watched([], [])
        making = asyncio.create_task(make(handle, thread, step_seconds, found.begun))
        async for _ in stream.chunks():
            found.arrived.append(asyncio.get_running_loop().time())
        await making
        return found

    return run_virtual(main())


async def make(handle: RequestHandle, thread: Any, seconds: float, begun: list[float]) -> None:
    for chunk in range(CHUNKS):
        await thread.going.wait()
        begun.append(asyncio.get_running_loop().time())
        for _ in range(STEPS):
            await thread.going.wait()
            await asyncio.sleep(seconds)
            handle.on_step(chunk)
        await thread.going.wait()
        handle.stream.publish(VideoChunk(chunk))
    handle.end(None)


def paced(pacing: Pacing, lead: int) -> VideoRequest:
    return request("a", 33 * CHUNKS, fps=FPS, max_lead_chunks=lead, pacing=pacing)


@pytest.mark.parametrize("lead", [1, 2, 4])
def test_a_fast_session_is_as_far_ahead_of_its_viewer_as_it_may_be(lead: int) -> None:
    """A chunk takes 0.1 s and plays for 1 s. A step of the chunk beyond the lead is taken."""
    found = watched(paced("media", lead), 0.02)
    seen = [0.0]
    for at in found.arrived:
        seen.append(max(at, seen[-1]) + 1.0)
    for chunk in range(CHUNKS):
        expected = 0.1 * (chunk + 1) if chunk < lead else seen[chunk - lead + 1] + 0.08
        assert found.arrived[chunk] == pytest.approx(expected)
    is_smooth = seen[-1] == pytest.approx(found.arrived[0] + CHUNKS)
    assert is_smooth == (lead > 1)


def test_a_session_that_is_paced_by_its_reader_does_not_wait_for_the_viewer() -> None:
    found = watched(paced("reader", 2), 0.02)
    assert found.arrived == pytest.approx([0.1 * (chunk + 1) for chunk in range(CHUNKS)])


def test_a_slow_session_is_never_held() -> None:
    """A chunk takes 1.5 s: the viewer waits for each, and the next one has been started."""
    found = watched(paced("media", 2), 0.3)
    assert found.arrived == pytest.approx([1.5 * (chunk + 1) for chunk in range(CHUNKS)])


def test_a_late_chunk_delays_the_later_ones() -> None:
    async def main() -> list[tuple[float, int]]:
        loop = asyncio.get_running_loop()
        seen: list[tuple[float, int]] = []
        viewer = Viewer(0, 10, lambda: seen.append((loop.time(), viewer.next_chunk)))
        viewer.deliver(0, 20)  # plays until 2
        viewer.deliver(1, 10)  # until 3
        await asyncio.sleep(5)
        viewer.deliver(2, 30)  # from 5 to 8
        viewer.deliver(3, 10)
        await asyncio.sleep(3.5)
        viewer.leave()
        await asyncio.sleep(10)
        return seen

    assert run_virtual(main()) == [(2.0, 1), (3.0, 2), (8.0, 3)]
