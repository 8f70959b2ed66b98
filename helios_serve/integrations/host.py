"""Hosts the engine inside another server, on its own event loop, for callers in any thread."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

from helios_serve.engine.launch import launch
from helios_serve.engine.loop.engine_core import EngineStats
from helios_serve.engine.requests.async_engine import AsyncEngine
from helios_serve.engine.requests.chunk_stream import VideoChunk
from helios_serve.errors import EngineDeadError
from helios_serve.integrations.settings import EngineSettings
from helios_serve.messages import Snapshot
from helios_serve.model_config import HeliosConfig
from helios_serve.options.sampling import PromptSwitch
from helios_serve.options.workers import ROLES
from helios_serve.video_request import VideoRequest

Result = TypeVar("Result")

READY_PERIOD = 0.05
"""Seconds between checks whether the workers have started."""
WATCH_PERIOD = 0.5
"""Seconds between checks whether there are workers."""


class EngineHost:
    """Runs the engine for one model.

    The workers start in the background. Raises CheckpointError, DeviceError or InvalidRequestError
    for an invalid model or invalid settings.
    """

    def __init__(self, model: str, settings: EngineSettings) -> None:
        self.model = model
        core = launch(
            model,
            settings.worker_groups(model),
            settings.executor_kind,
            ray_address=settings.host.ray_address,
            scheduling=settings.scheduling,
        )
        self.config: HeliosConfig = core.model_config
        self._engine = AsyncEngine({model: core})
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="helios host", daemon=True)
        self._thread.start()
        self._max_outage = settings.host.exit_without_workers
        self._dead: str | None = None
        self._wait(self._engine.__aenter__())
        self._watching = self.call(self._watch())

    @property
    def failure(self) -> str | None:
        """The reason why no more videos can be generated, or None."""
        return "the engine is closed" if self._loop.is_closed() else self._engine_failure

    def on_failure(self, callback: Callable[[str], None]) -> None:
        """Call `callback` with the reason, in a thread, if no more videos can be generated.

        It is not called when the engine is closed.
        """
        self._watching.add_done_callback(
            lambda watching: None if watching.cancelled() else callback(watching.result())
        )

    def wait_ready(self) -> None:
        """Wait until every role has a ready worker. Raises EngineDeadError."""
        self._wait(self._until_ready())

    def submit(
        self, request: VideoRequest, *, continue_from: Snapshot | None = None
    ) -> "HostedVideo":
        """Accept a request and start generating it.

        With `continue_from`, the video continues from that snapshot: `num_frames` counts from the
        beginning of the snapshot's video, and the chunks start after the snapshot. Raises
        InvalidRequestError, CapacityError or EngineDeadError.
        """
        self._wait(self._engine.submit(request, continue_from=continue_from))
        return HostedVideo(self, request.request_id)

    def stats(self) -> EngineStats:
        """Return the current counts. Raises EngineDeadError."""
        stats = self._wait(self._engine.models.stats())
        if self.model not in stats:
            raise EngineDeadError(self.failure or "the engine is closed")
        return stats[self.model]

    def worker_locations(self) -> dict[str, str]:
        """Return where each worker runs, by its id."""
        reports = self._wait(self._engine.models.workers())
        return {report.worker_id: report.where for report in reports.get(self.model, [])}

    def close(self) -> None:
        """Stop all videos, the workers and the engine. It may be called twice."""
        if self._loop.is_closed():
            return
        self._watching.cancel()
        try:
            self._wait(self._engine.__aexit__(None, None, None))
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def call(self, work: Coroutine[Any, Any, Result]) -> "Future[Result]":
        """Run a coroutine on the engine's event loop. Raises EngineDeadError if it is closed."""
        try:
            return asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError as error:
            work.close()
            raise EngineDeadError("the engine is closed") from error

    @property
    def _engine_failure(self) -> str | None:
        return self._engine.models.failures.get(self.model, self._dead)

    async def _watch(self) -> str:
        """Wait until no more videos can be generated, and return why."""
        while self._engine_failure is None:
            await asyncio.sleep(WATCH_PERIOD)
            stats = (await self._engine.models.stats()).get(self.model)
            outage = None if stats is None else stats.outage
            if outage is not None and outage.seconds > self._max_outage:
                self._dead = f"{outage.reason}; none has been ready for {outage.seconds:.0f} s"
        return self._engine_failure

    def _wait(self, work: Coroutine[Any, Any, Result]) -> Result:
        return self.call(work).result()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    async def _until_ready(self) -> None:
        waiting = set(ROLES)
        while waiting:
            if self._engine_failure is not None:
                raise EngineDeadError(self._engine_failure)
            reports = (await self._engine.models.workers()).get(self.model, [])
            ready = (report.roles for report in reports if report.state == "ready")
            waiting = set(ROLES).difference(*ready)
            await asyncio.sleep(READY_PERIOD if waiting else 0)


class HostedVideo:
    """A video that is being generated, for callers in any thread.

    There is one reader, which takes the chunks in order. A video with `max_lead_chunks` waits for
    its reader.
    """

    def __init__(self, host: EngineHost, request_id: str) -> None:
        self.host = host
        self.request_id = request_id
        self._chunks = host._engine.watch(request_id)

    def next_chunk(self) -> "Future[VideoChunk | None]":
        """Return a future of the next chunk, or of None after the last one.

        The future raises RequestFailedError if the video ends early. Wait for it before the next
        call.
        """
        return self.host.call(self._next())

    def chunks(self) -> Iterator[VideoChunk]:
        """Yield the remaining chunks. Raises RequestFailedError."""
        while (chunk := self.next_chunk().result()) is not None:
            yield chunk

    def switch_prompt(
        self, prompt: str, transition_chunks: int | None = None
    ) -> "Future[PromptSwitch]":
        """Change the video's prompt. Returns a future of the switch, which says at which chunk.

        The future raises InvalidRequestError if no chunk is left for the switch.
        """
        switching = self.host._engine.switch_prompt(self.request_id, prompt, transition_chunks)
        return self.host.call(switching)

    def abort(self) -> None:
        """Abort the video and forget it. A finished video is not changed."""
        self.host.call(self.host._engine.abort(self.request_id)).result()

    async def _next(self) -> VideoChunk | None:
        return await anext(self._chunks, None)
