"""A simulated fleet as the target of a load."""

import asyncio
from itertools import count

from helios_serve.benchmarks.load.clock import LoadClock
from helios_serve.benchmarks.load.request import SessionRequest
from helios_serve.benchmarks.measure.record import SessionRecord
from helios_serve.benchmarks.simulator.cell import Cell, LiveSession
from helios_serve.benchmarks.simulator.fleet import Fleet
from helios_serve.benchmarks.targets.target import SessionFailedError, SessionRefusedError
from helios_serve.errors import CapacityError, HeliosError, InvalidRequestError
from helios_serve.options.realtime import Pacing
from helios_serve.options.sampling import SamplingParams
from helios_serve.options.scheduling import DEFAULT_TENANT, ServiceTier
from helios_serve.size import Size
from helios_serve.video_request import Frames, VideoRequest

MADE_FRAMES = 33
"""Frames of a reference video."""


class SimulatedTarget:
    """Runs sessions on a fleet. Sessions without a size have `size`, and run at most
    `max_lead_chunks` chunks ahead, as `pacing` says.
    """

    def __init__(
        self,
        fleet: Fleet,
        clock: LoadClock,
        size: Size,
        *,
        max_lead_chunks: int | None = None,
        pacing: Pacing = "reader",
    ) -> None:
        self.fleet = fleet
        self.clock = clock
        self.size = size
        self.max_lead_chunks = max_lead_chunks
        self.pacing = pacing
        self._numbers = count()
        self._cells: dict[str, Cell] = {}

    async def run(self, request: SessionRequest, record: SessionRecord) -> None:
        record.sent = self.clock.now()
        cell = self.fleet.choose(record.sent)
        if cell is None:
            raise SessionRefusedError("connection", "every cell is down")
        try:
            made = self.video_request(request)
            record.video_id = made.request_id
            live = cell.start(made, record)
        except CapacityError as error:
            raise SessionRefusedError(error.code, str(error)) from error
        except HeliosError as error:
            raise SessionFailedError(type(error).__name__, str(error)) from error
        record.accepted = self.clock.now()
        self._cells[made.request_id] = cell
        timers = self._switch(request, cell, live)
        try:
            await live.ended
        finally:
            for timer in timers:
                timer.cancel()
            del self._cells[made.request_id]
            cell.leave(made.request_id)

    async def leave(self, record: SessionRecord) -> None:
        """Nothing to do: `run` leaves the session when it is cancelled."""

    def video_request(self, request: SessionRequest) -> VideoRequest:
        """Return the engine's form of a session. A reference is as large as the video.

        Raises InvalidRequestError for values that the engine does not take.
        """
        size = Size(request.width or self.size.width, request.height or self.size.height)
        params = SamplingParams(
            width=size.width,
            height=size.height,
            num_frames=request.num_frames,
            fps=request.fps,
            steps=request.steps,
            seed=request.seed or 0,
        )
        still = moving = None
        if request.video is not None or (request.task == "v2v" and request.image is None):
            moving = Frames(b"", MADE_FRAMES, size.height, size.width)
        elif request.image is not None or request.task == "i2v":
            still = Frames(b"", 1, size.height, size.width)
        return VideoRequest(
            request_id=f"video-{next(self._numbers)}",
            prompt=request.prompt,
            params=params,
            image=still,
            video=moving,
            tenant=request.tenant or DEFAULT_TENANT,
            tier=tier_of(request.tier),
            output="segment",
            max_lead_chunks=self.max_lead_chunks,
            pacing=self.pacing,
        )

    def _switch(
        self, request: SessionRequest, cell: Cell, live: LiveSession
    ) -> list[asyncio.TimerHandle]:
        """Switch the prompt at its times, counted from the intended start."""
        loop = asyncio.get_running_loop()
        start = loop.time() - (self.clock.now() - live.record.intended)
        return [
            loop.call_at(max(loop.time(), start + milliseconds / 1000), cell.switch, live, prompt)
            for milliseconds, prompt in request.switches
        ]


def tier_of(name: str | None) -> ServiceTier:
    """Return a tier by its name. Raises InvalidRequestError for another text."""
    match name:
        case None | "default":
            return "default"
        case "priority" | "flex":
            return name
    raise InvalidRequestError(
        f"got tier {name!r}, expected priority, default or flex", param="service_tier"
    )
