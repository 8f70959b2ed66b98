"""The served models, each with an engine in its own thread, and with workers."""

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeVar

from helios_serve.core.admission import check_allowed
from helios_serve.engine.loop.engine_core import EngineCore, EngineStats
from helios_serve.engine.loop.events import EngineEvent
from helios_serve.engine.loop.worker_handle import WorkerReport
from helios_serve.engine.requests.engine_thread import EngineThread
from helios_serve.errors import EngineDeadError, InvalidRequestError
from helios_serve.model_config import HeliosConfig
from helios_serve.options.sampling import ResolvedParams
from helios_serve.options.scheduling import TenantConfig
from helios_serve.options.workers import WorkerConfig
from helios_serve.video_request import VideoRequest

Result = TypeVar("Result")

DRAIN_PERIOD = 0.05
"""Seconds between two checks of whether all engines are quiet."""


class ModelPool:
    """Models by name, each with its own workers. The first one is the default.

    `aliases` maps further names to the names of models.
    """

    def __init__(
        self, cores: Mapping[str, EngineCore], aliases: Mapping[str, str] | None = None
    ) -> None:
        self.cores = cores
        self.aliases = aliases or {}
        self._threads: dict[str, EngineThread] = {}

    def open(
        self,
        on_events: Callable[[list[EngineEvent]], None],
        on_end: Callable[[EngineThread, str], None],
    ) -> None:
        """Start a thread for each engine. The arguments are those of EngineThread."""
        self._threads = {
            name: EngineThread(core, on_events, on_end) for name, core in self.cores.items()
        }

    async def close(self) -> list[BaseException]:
        """End all workers and threads. Returns the errors of those that could not be ended."""
        closing = (asyncio.to_thread(thread.close) for thread in self._threads.values())
        outcomes = await asyncio.gather(*closing, return_exceptions=True)
        return [outcome for outcome in outcomes if outcome is not None]

    @property
    def default_model(self) -> str:
        return next(iter(self.cores))

    @property
    def names(self) -> tuple[str, ...]:
        """All names that requests may use."""
        return (*self.cores, *self.aliases)

    def name_of(self, model: str | None) -> str:
        """Return the name of a model, given one of its names; None is the default model.

        A name that is not served is returned unchanged.
        """
        if model is None:
            return self.default_model
        return self.aliases.get(model, model)

    @property
    def failures(self) -> dict[str, str]:
        """The reasons why engines have stopped, by model."""
        failures = {name: thread.failure for name, thread in self._threads.items()}
        return {name: failure for name, failure in failures.items() if failure is not None}

    def thread_of(self, model: str | None) -> EngineThread:
        """Return the thread of a model. Raises InvalidRequestError if it is not served."""
        name = self.name_of(model)
        if name not in self._threads:
            served = ", ".join(self.names)
            raise InvalidRequestError(
                f"got model {name!r}, expected one of: {served}", param="model"
            )
        return self._threads[name]

    def check(self, request: VideoRequest) -> ResolvedParams:
        """Check a request as far as no engine is needed. Returns its resolved parameters.

        Raises InvalidRequestError if the model is not served or cannot make the video, and
        NotAllowedError if the tenant's limits forbid it.
        """
        params = request.resolve(self.model_config(request.model))
        check_allowed(request, self.tenant(request.tenant, request.model))
        return params

    def tenant(self, name: str, model: str | None = None) -> TenantConfig:
        """Return the current limits of a tenant."""
        return self.thread_of(model).core.scheduler.config.tenant(name)

    async def set_tenants(
        self, tenants: Mapping[str, TenantConfig], defaults: TenantConfig
    ) -> None:
        """Set the tenants' shares and limits. Accepted requests are not affected."""
        await self._ask_all(lambda core: core.scheduler.set_tenants(tenants, defaults))

    def model_config(self, model: str | None = None) -> HeliosConfig:
        """Return a model's configuration. Raises InvalidRequestError if it is not served."""
        return self.thread_of(model).core.model_config

    async def workers(self) -> dict[str, list[WorkerReport]]:
        """Return the workers of each model whose engine runs."""
        return await self._ask_all(lambda core: core.worker_pool.reports())

    def worker_config(self, model: str | None = None) -> WorkerConfig:
        """Return the configuration of a model's first worker."""
        return self.thread_of(model).core.config.workers[0]

    async def add_worker(self, model: str | None = None, config: WorkerConfig | None = None) -> str:
        """Start one more worker, by default like the model's first one. Returns its id."""
        chosen = config or self.worker_config(model)
        thread = self.thread_of(model)
        return await done(thread.call(lambda core: core.worker_pool.start(chosen)))

    async def drain_worker(self, worker_id: str, model: str | None = None) -> None:
        """End a worker when its sessions have left it, at their next chunk edges.

        Raises InvalidRequestError for an unknown worker and for the last one with some role.
        """
        thread = self.thread_of(model)
        await done(thread.call(lambda core: core.worker_pool.drain(worker_id)))

    async def drain(self, timeout: float) -> bool:
        """Stop every session at its next chunk edge, and wait until those chunks are decoded.

        Waits up to `timeout` seconds, and returns whether all were decoded. Stored jobs resume
        later.
        """
        await self._ask_all(lambda core: core.scheduler.close())
        deadline = time.monotonic() + timeout
        while not all((await self._ask_all(lambda core: core.is_quiet)).values()):
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(DRAIN_PERIOD)
        return True

    async def stats(self) -> dict[str, EngineStats]:
        """Return the current counts, by model."""
        return await self._ask_all(EngineCore.stats)

    async def _ask_all(self, function: Callable[[EngineCore], Result]) -> dict[str, Result]:
        """Call `function` with every core, except those whose engine has stopped."""
        answers = {}
        for name, thread in self._threads.items():
            with suppress(EngineDeadError):
                answers[name] = await done(thread.call(function))
        return answers


async def done(future: "Future[Result]") -> Result:
    """Wait for a call in another thread. Cancelling the wait does not cancel the call.

    The future that asyncio awaits never holds the call's exception: if the wait was cancelled,
    asyncio would report it as never retrieved.
    """
    finished: Future[Future[Result]] = Future()
    future.add_done_callback(finished.set_result)
    return (await asyncio.shield(asyncio.wrap_future(finished))).result()
