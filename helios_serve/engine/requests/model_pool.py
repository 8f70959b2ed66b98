"""Models that are served: an engine for each, in a thread of its own, and its workers."""

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeVar

from helios_serve.core.admission import check_allowed
from helios_serve.engine.loop.engine_core import EngineCore, EngineStats
from helios_serve.engine.loop.worker_handle import WorkerReport
from helios_serve.engine.requests.engine_thread import EngineThread
from helios_serve.errors import EngineDeadError, InvalidRequestError
from helios_serve.model_config import HeliosConfig
from helios_serve.options.scheduling import TenantConfig
from helios_serve.options.workers import WorkerConfig
from helios_serve.video_request import VideoRequest

Result = TypeVar("Result")

DRAIN_PERIOD = 0.05
"""Seconds between two looks at what is still under way."""


class ModelPool:
    """Models by name, each with its own workers; the first is the default."""

    def __init__(self, cores: Mapping[str, EngineCore]) -> None:
        self.cores = cores
        self._threads: dict[str, EngineThread] = {}

    @property
    def failures(self) -> dict[str, str]:
        """Models that can make no more videos, and why."""
        failures = {name: thread.failure for name, thread in self._threads.items()}
        return {name: failure for name, failure in failures.items() if failure is not None}

    def check(self, request: VideoRequest) -> None:
        """Raise InvalidRequestError for a model that is not served, or what it cannot make.

        Raises NotAllowedError for what the request's tenant may not ask for.
        """
        request.resolve(self.model_config(request.model))
        check_allowed(request, self.tenant(request.tenant, request.model))

    def tenant(self, name: str, model: str | None = None) -> TenantConfig:
        """What a tenant may ask for now."""
        return self._thread_of(model).core.scheduler.config.tenant(name)

    async def set_tenants(
        self, tenants: Mapping[str, TenantConfig], defaults: TenantConfig
    ) -> None:
        """Shares and limits of tenants from now on; what was accepted is made in any case."""
        await self._ask_all(lambda core: core.scheduler.set_tenants(tenants, defaults))

    def model_config(self, model: str | None = None) -> HeliosConfig:
        """What a model is; raises InvalidRequestError for one that is not served."""
        return self._thread_of(model).core.model_config

    async def workers(self) -> dict[str, list[WorkerReport]]:
        """The workers of every model that has some."""
        return await self._ask_all(lambda core: core.worker_pool.reports())

    def worker_config(self, model: str | None = None) -> WorkerConfig:
        """What the first worker of a model runs."""
        return self._thread_of(model).core.config.workers[0]

    async def add_worker(self, model: str | None = None, config: WorkerConfig | None = None) -> str:
        """Start one more worker, like the first one of the model's if not told otherwise."""
        chosen = config or self.worker_config(model)
        return await self._call(self._thread_of(model), lambda core: core.worker_pool.start(chosen))

    async def drain_worker(self, worker_id: str, model: str | None = None) -> None:
        """Let a worker end when its sessions have left it, at their next chunk edges.

        Raises InvalidRequestError for an unknown one, or the last one of its kind.
        """
        thread = self._thread_of(model)
        await self._call(thread, lambda core: core.worker_pool.drain(worker_id))

    async def drain(self, timeout: float) -> bool:
        """Take no more steps than lead to the next chunk edges, and wait until those chunks are
        handed on, up to `timeout` seconds; whether they were. Stored jobs go on another time."""
        await self._ask_all(lambda core: core.scheduler.close())
        deadline = time.monotonic() + timeout
        while not all((await self._ask_all(lambda core: core.is_quiet)).values()):
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(DRAIN_PERIOD)
        return True

    async def stats(self) -> dict[str, EngineStats]:
        """Counts of this moment, by model."""
        return await self._ask_all(EngineCore.stats)

    @property
    def _default_model(self) -> str:
        return next(iter(self.cores))

    def _thread_of(self, model: str | None) -> EngineThread:
        name = self._default_model if model is None else model
        if name not in self._threads:
            served = ", ".join(self._threads)
            raise InvalidRequestError(
                f"got model {name!r}, expected one of: {served}", param="model"
            )
        return self._threads[name]

    async def _call(self, thread: EngineThread, function: Callable[[EngineCore], Result]) -> Result:
        """Between two steps of the engine; it is also made if the caller goes away."""
        return await done(thread.call(function))

    async def _ask_all(self, function: Callable[[EngineCore], Result]) -> dict[str, Result]:
        """By model; those whose engine has given up are left out."""
        answers = {}
        for name, thread in self._threads.items():
            with suppress(EngineDeadError):
                answers[name] = await self._call(thread, function)
        return answers


async def done(future: "Future[Result]") -> Result:
    """Wait for another thread; what it does goes on if the waiting is cancelled."""
    return await asyncio.shield(asyncio.wrap_future(future))
