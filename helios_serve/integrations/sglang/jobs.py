"""Runs many requests concurrently in SGLang's scheduler.

SGLang's event loop takes the next requests, runs them on its worker, and replies; it does nothing
else meanwhile. For our pipelines, each request is started as soon as it arrives, in a thread that
waits for our engine, and the loop replies when it is done. Our engine batches all running requests.
"""

import os
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import Any

from sglang.multimodal_gen.runtime.entrypoints.control_requests import ReleaseRealtimeSessionReq
from sglang.multimodal_gen.runtime.managers.progress_reporter import get_progress_reporter
from sglang.multimodal_gen.runtime.pipelines_core.schedule_batch import OutputBatch, Req

from helios_serve.errors import HeliosError
from helios_serve.integrations.sglang.executor import HeliosPipelineExecutor
from helios_serve.integrations.sglang.pipeline import HeliosPipelineConfig
from helios_serve.integrations.sglang.videos import SglangVideos
from helios_serve.logger import logger

SCHEDULER = "sglang.multimodal_gen.runtime.managers.scheduler.Scheduler"

Item = tuple[bytes | None, Any]
"""A client, and its request: one request, a list of them, or a command."""
STORE = "sglang.multimodal_gen.runtime.entrypoints.openai.stores.AsyncDictStore.pop"


def event_loop(original: Callable[[Any], None], scheduler: Any) -> None:
    """Wrap SGLang's event loop. Our engine is closed when the loop ends."""
    executor = scheduler.worker.pipeline.executor
    if not isinstance(executor, HeliosPipelineExecutor):
        return original(scheduler)
    scheduler.helios_jobs = Jobs(scheduler, executor)
    executor.host.on_failure(end_process)
    try:
        return original(scheduler)
    finally:
        executor.host.close()


def end_process(reason: str) -> None:
    """End SGLang's worker, whose engine is dead: SGLang's health check fails from then on.

    The health check is answered by another process, which looks only at whether this one runs.
    """
    logger.critical("helios-serve: %s; SGLang's worker ends", reason)
    os._exit(1)


def next_batch(original: Callable[[Any], Any], scheduler: Any) -> Any:
    """Run our jobs in each turn of the loop. The loop itself runs commands and warm-ups only."""
    jobs: Jobs | None = getattr(scheduler, "helios_jobs", None)
    if jobs is not None:
        jobs.turn()
    return original(scheduler)


HOOKS = {"event_loop": event_loop, "get_next_batch_to_run": next_batch}
"""Hooks around methods of the scheduler."""


class Jobs:
    """The running requests. Everything except `_run` is called in the loop's thread."""

    def __init__(self, scheduler: Any, executor: HeliosPipelineExecutor) -> None:
        self._scheduler = scheduler
        self._executor = executor
        self._calls: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._wake_end, self._write_end = os.pipe()
        for end in (self._wake_end, self._write_end):
            os.set_blocking(end, False)
        scheduler._poller.register(self._wake_end)
        # A busy loop would take a CPU core from our workers.
        scheduler.server_args.sleep_on_idle = True

    def turn(self) -> None:
        """Start new requests, cancel released sessions, and reply to finished requests."""
        waiting = self._scheduler.waiting_queue
        for entry in [entry for entry in waiting if is_generation(entry[1])]:
            waiting.remove(entry)
            self._begin(entry[:2])
        for _, command, _ in waiting:
            if isinstance(command, ReleaseRealtimeSessionReq):
                self._executor.cancel(command.session_id)
        self._drain_pipe()
        while not self._calls.empty():
            self._calls.get()()

    def _begin(self, item: Item) -> None:
        if self._scheduler.metrics is not None:
            self._scheduler.metrics.dispatch(id(item[1]))
        opened = [(batch, self._executor.open(batch)) for batch in batches_of(item)]
        self._report(item, 0, 0)
        Thread(target=self._run, args=(item, opened), name="helios job", daemon=True).start()

    def _run(self, item: Item, opened: list[tuple[Any, SglangVideos]]) -> None:
        """Run one request in its own thread. An error becomes the request's response."""
        started = time.monotonic()
        try:
            self._executor.make(opened, partial(self._call, self._report, item))
            output = self._scheduler.worker.execute_forward(batches_of(item))
        except (HeliosError, ValueError, OSError) as error:
            output = OutputBatch(error=str(error))
        except Exception as error:
            output = OutputBatch(error=f"{type(error).__name__}: {error}")
        if output.metrics is not None:
            output.metrics.total_duration_ms = 1000 * (time.monotonic() - started)
        self._call(self._scheduler._return_item_result, item, output)

    def _report(self, item: Item, done: int, total: int) -> None:
        reporter = get_progress_reporter()
        if reporter is not None:
            names = [b.request_id for b in batches_of(item) if b.report_progress and b.request_id]
            reporter.step(request_ids=names, completed=done, total=total)

    def _call(self, work: Callable[..., None], *arguments: Any) -> None:
        """Call `work` in the loop's thread, and wake the loop. May be called in any thread."""
        self._calls.put(partial(work, *arguments))
        with suppress(BlockingIOError):  # the pipe is full of earlier wake-ups
            os.write(self._write_end, b"\0")

    def _drain_pipe(self) -> None:
        with suppress(BlockingIOError):
            while os.read(self._wake_end, 4096):
                pass


def is_generation(request: Any) -> bool:
    """Return whether a request is for videos, and not a warm-up."""
    batches = request if isinstance(request, list) else [request]
    return all(isinstance(batch, Req) and not batch.is_warmup for batch in batches)


def batches_of(item: Item) -> list[Any]:
    request = item[1]
    return request if isinstance(request, list) else [request]


async def forget_video(original: Callable[[Any, str], Awaitable[Any]], store: Any, key: str) -> Any:
    """Wrap the removal of a video's entry from SGLang's store. Runs in the HTTP process."""
    from sglang.multimodal_gen.runtime.entrypoints.openai import video_api
    from sglang.multimodal_gen.runtime.scheduler_client import async_scheduler_client
    from sglang.multimodal_gen.runtime.server_args import get_global_server_args

    entry = await original(store, key)
    task = video_api._VIDEO_JOB_TASKS.get(key)
    config = get_global_server_args().pipeline_config
    if store is video_api.VIDEO_STORE and task and isinstance(config, HeliosPipelineConfig):
        task.cancel()
        await async_scheduler_client.forward(ReleaseRealtimeSessionReq(session_id=key))
    return entry
