"""A file for Perfetto or chrome://tracing that shows the work of every worker over time."""

import itertools
import time
from collections import defaultdict, deque
from collections.abc import Callable
from contextlib import suppress
from copy import copy
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, NamedTuple

import msgspec

from helios_serve.core.scheduler import Scheduler
from helios_serve.errors import StorageError
from helios_serve.logger import logger
from helios_serve.messages import (
    ChunkDecoded,
    ChunkRendered,
    InputsEncoded,
    ScheduledStep,
    SchedulerOutput,
    StepsDone,
)
from helios_serve.store.files import create_file

Event = dict[str, Any]


class Slice(NamedTuple):
    """The name and details of a plan's slice, which is written when the plan is done."""

    name: str
    details: Event


class EventFile:
    """Writes events at once, from any thread, so that the file of a killed process can be read.

    Format: the JSON array of the Trace Event Format, whose end may be missing. If the disk fails,
    the trace ends and the engine continues.
    """

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._started = clock()
        self._lock = Lock()
        self._separator = b""
        try:
            self._file = create_file(path)
        except OSError as error:
            raise StorageError(f"cannot write {path}: {error.strerror}") from error
        self._put(b"[\n")

    @property
    def now(self) -> float:
        """Seconds since the file was begun."""
        return self._clock() - self._started

    def write(self, event: Event) -> None:
        with self._lock:
            self._put(self._separator + msgspec.json.encode(event))
            self._separator = b",\n"

    def close(self) -> None:
        with self._lock:
            self._put(b"\n]\n")
            self._file.close()

    def _put(self, data: bytes) -> None:
        if self._file.closed:
            return
        try:
            self._file.write(data)
            self._file.flush()
        except OSError as error:
            logger.error("the trace ends here: cannot write %s: %s", self._file.name, error)
            with suppress(OSError):
                self._file.close()


class Trace:
    """Each worker has one lane for its steps and others for its tasks.

    A decode task is shown in two lanes: while its frames are decoded, and while they are encoded.
    A slice ends when the engine receives the result. The engines of several models share a file;
    each has a group of lanes. `cpu_clock` returns the CPU seconds of this process; None leaves them
    out.
    """

    def __init__(
        self,
        path: Path,
        clock: Callable[[], float] = time.perf_counter,
        cpu_clock: Callable[[], float] | None = time.process_time,
    ) -> None:
        self._cpu_clock = cpu_clock
        self._file = EventFile(path, clock)
        self._processes = itertools.count(1)
        self._begin()

    def of(self, model: str) -> "Trace":
        """Return the trace of one model's engine, in the same file.

        Worker ids are unique within it.
        """
        part = copy(self)
        part._begin()
        part._write({"ph": "M", "name": "process_name", "args": {"name": model}})
        return part

    def _begin(self) -> None:
        self._process = next(self._processes)
        self._lanes: dict[str, int] = {}
        self._plans: defaultdict[str, deque[Slice]] = defaultdict(deque)
        self._rendered: defaultdict[str, deque[float]] = defaultdict(deque)
        """Seconds that the frames took which each worker encodes, the oldest first."""

    def plan(self, worker_id: str, plan: SchedulerOutput, scheduler: Scheduler) -> None:
        """A plan was sent to a worker."""
        steps = [describe_step(step, scheduler) for step in plan.scheduled_steps]
        details: Event = {
            "tokens": sum(step["tokens"] for step in steps),
            "steps": steps,
            "opened": [new.session_id for new in plan.new_sessions],
            "closed": list(plan.finished),
        }
        stages = sorted({step["stage"] for step in steps})
        sessions = f"{len(steps)} session{'s' * (len(steps) != 1)}"
        name = f"{sessions} at stage {', '.join(map(str, stages))}" if steps else "bookkeeping"
        self._plans[worker_id].append(Slice(name, details))

    def steps(self, worker_id: str, event: StepsDone, scheduler: Scheduler) -> None:
        """The worker's oldest plan is done."""
        stats = scheduler.stats()
        name, details = self._plans[worker_id].popleft()
        self._slice(worker_id, name, event.seconds, details)
        sessions = {"waiting": stats.waiting, "running": stats.running}
        self._write({"ph": "C", "name": "sessions", "args": sessions})
        blocks = {"used": stats.used_blocks, "free": stats.total_blocks - stats.used_blocks}
        self._write({"ph": "C", "name": "history blocks", "args": blocks})
        if event.cpu_seconds:
            used = {worker_id: event.cpu_seconds}
            if self._cpu_clock is not None:
                used["server"] = self._cpu_clock()
            self._write({"ph": "C", "name": "CPU seconds", "args": used})

    def task(self, worker_id: str, event: InputsEncoded | ChunkDecoded) -> None:
        """An encode or decode task is done."""
        details: Event = {"session": event.session_id, "error": event.error}
        if isinstance(event, InputsEncoded):
            details["prompts"] = len(event.prompts)
            details["has_reference"] = event.snapshot is not None
            self._slice(f"{worker_id} encode", "inputs", event.seconds, details)
        else:
            details["chunk"] = event.chunk
            rendering = self._rendered[worker_id].popleft()
            encoding = max(0.0, event.seconds - rendering)
            self._slice(f"{worker_id} segments", f"chunk {event.chunk}", encoding, details)

    def rendered(self, worker_id: str, event: ChunkRendered) -> None:
        """The frames of a decode task are made, and are encoded from now on."""
        details: Event = {"session": event.session_id, "chunk": event.chunk}
        self._rendered[worker_id].append(event.seconds)
        self._slice(f"{worker_id} decode", f"chunk {event.chunk}", event.seconds, details)

    def death(self, worker_id: str, reason: str) -> None:
        """The worker died, with its plans."""
        self._plans.pop(worker_id, None)
        self._rendered.pop(worker_id, None)
        self._write(
            {
                "ph": "i",
                "name": "died",
                "s": "t",
                "tid": self._lane(worker_id),
                "args": {"reason": reason},
            }
        )

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "Trace":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _slice(self, lane: str, name: str, seconds: float, details: Event) -> None:
        start = self._file.now - seconds
        self._write(
            {
                "ph": "X",
                "name": name,
                "tid": self._lane(lane),
                "ts": 1e6 * start,
                "dur": 1e6 * seconds,
                "args": details,
            }
        )

    def _lane(self, name: str) -> int:
        if name not in self._lanes:
            lane = self._lanes[name] = len(self._lanes) + 1
            labels = {"thread_name": {"name": name}, "thread_sort_index": {"sort_index": lane}}
            for kind, value in labels.items():
                self._write({"ph": "M", "name": kind, "tid": lane, "args": value})
        return self._lanes[name]

    def _write(self, event: Event) -> None:
        self._file.write({"pid": self._process, "ts": 1e6 * self._file.now} | event)


def describe_step(step: ScheduledStep, scheduler: Scheduler) -> Event:
    """Return the details of a step. `tokens` counts noise and history, once for each prompt."""
    chunk, stage, number = step.cursor
    session = scheduler.sessions[step.session_id]
    return {
        "session": step.session_id,
        "chunk": chunk,
        "stage": stage,
        "step": number,
        "tokens": session.cost.tokens[stage],
        "width": session.geometry.width,
        "height": session.geometry.height,
        "branches": 2 if session.params.is_guided else 1,
    }
