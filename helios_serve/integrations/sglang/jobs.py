"""SGLang's scheduler with many requests at a time.

Its loop takes the next requests, has its worker make them, and replies; nothing is heard of what
comes in between. For our pipelines each request is begun when it comes instead, in a thread that
waits for our engine, and the loop replies when it is done. Our engine batches all that are there.
"""

import os
import time
from collections.abc import Callable
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
from helios_serve.integrations.sglang.videos import SglangVideos

SCHEDULER = "sglang.multimodal_gen.runtime.managers.scheduler.Scheduler"

Item = tuple[bytes | None, Any]
"""A client, and what it asks for: a request, several as one, or a command."""


def event_loop(original: Callable[[Any], None], scheduler: Any) -> None:
    """The loop, from the beginning to the end; our engine ends with it."""
    executor = scheduler.worker.pipeline.executor
    if not isinstance(executor, HeliosPipelineExecutor):
        return original(scheduler)
    scheduler.helios_jobs = Jobs(scheduler, executor)
    try:
        return original(scheduler)
    finally:
        executor.host.close()


def next_batch(original: Callable[[Any], Any], scheduler: Any) -> Any:
    """In each turn of the loop: what it is to run itself, which are commands and warm-ups."""
    jobs: Jobs | None = getattr(scheduler, "helios_jobs", None)
    if jobs is not None:
        jobs.turn()
    return original(scheduler)


HOOKS = {"event_loop": event_loop, "get_next_batch_to_run": next_batch}
"""Around methods of the scheduler."""


class Jobs:
    """The requests that are being made. All but `_run` is done in the thread of the loop."""

    def __init__(self, scheduler: Any, executor: HeliosPipelineExecutor) -> None:
        self._scheduler = scheduler
        self._executor = executor
        self._calls: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._wake_end, self._write_end = os.pipe()
        for end in (self._wake_end, self._write_end):
            os.set_blocking(end, False)
        scheduler._poller.register(self._wake_end)
        # The loop would keep a core busy that our workers need.
        scheduler.server_args.sleep_on_idle = True

    def turn(self) -> None:
        """Begin what has come, cancel what is to be, and reply to what is done."""
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
        """In a thread of its own; an error is the request's answer."""
        begun = time.monotonic()
        try:
            self._executor.make(opened, partial(self._call, self._report, item))
            output = self._scheduler.worker.execute_forward(batches_of(item))
        except (HeliosError, ValueError, OSError) as error:
            output = OutputBatch(error=str(error))
        except Exception as error:
            output = OutputBatch(error=f"{type(error).__name__}: {error}")
        if output.metrics is not None:
            output.metrics.total_duration_ms = 1000 * (time.monotonic() - begun)
        self._call(self._scheduler._return_item_result, item, output)

    def _report(self, item: Item, done: int, total: int) -> None:
        reporter = get_progress_reporter()
        if reporter is not None:
            names = [b.request_id for b in batches_of(item) if b.report_progress and b.request_id]
            reporter.step(request_ids=names, completed=done, total=total)

    def _call(self, work: Callable[..., None], *arguments: Any) -> None:
        """From any thread: have `work` done by the loop, which is woken."""
        self._calls.put(partial(work, *arguments))
        with suppress(BlockingIOError):  # full of calls to wake up
            os.write(self._write_end, b"\0")

    def _drain_pipe(self) -> None:
        with suppress(BlockingIOError):
            while os.read(self._wake_end, 4096):
                pass


def is_generation(asked: Any) -> bool:
    """Whether it is for videos, and not to warm up."""
    batches = asked if isinstance(asked, list) else [asked]
    return all(isinstance(batch, Req) and not batch.is_warmup for batch in batches)


def batches_of(item: Item) -> list[Any]:
    asked = item[1]
    return asked if isinstance(asked, list) else [asked]
