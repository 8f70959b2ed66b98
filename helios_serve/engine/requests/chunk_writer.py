"""Events on their way to readers, by way of the disk: nothing is told that could still be lost."""

import queue
import threading
from collections.abc import Callable
from typing import NamedTuple

from helios_serve.engine.loop.events import (
    ChunkReady,
    EngineEvent,
    PromptSwitched,
    RequestFailed,
    RequestFinished,
)
from helios_serve.errors import describe_error
from helios_serve.logger import logger
from helios_serve.store.snapshots import ResumePoint
from helios_serve.store.video_store import VideoStore

NUM_THREADS = 4


class Forget(NamedTuple):
    """The request's last event was before this."""

    request_id: str


class ChunkWriter:
    """Stores what events say and passes them on to `tell`, each request's in their order.

    Where that fails nothing more of the request is stored or passed on, lest a chunk be missing
    among others; `on_error` is told, with its id.
    """

    def __init__(
        self,
        store: VideoStore,
        tell: Callable[[EngineEvent], None],
        on_error: Callable[[str, str], None],
    ) -> None:
        self.store = store
        self.tell = tell
        self.on_error = on_error
        self._stopped: set[str] = set()
        self._queues: list[queue.SimpleQueue[EngineEvent | Forget | None]] = []
        self._threads: list[threading.Thread] = []
        for number in range(NUM_THREADS):
            events: queue.SimpleQueue[EngineEvent | Forget | None] = queue.SimpleQueue()
            thread = threading.Thread(
                target=self._run, args=(events,), name=f"commit {number}", daemon=True
            )
            thread.start()
            self._queues.append(events)
            self._threads.append(thread)

    def put(self, event: EngineEvent | Forget) -> None:
        """Never waits; files are written in a thread."""
        self._queues[hash(event.request_id) % NUM_THREADS].put(event)

    def stop(self, request_id: str) -> None:
        """Drop what is on its way of a request, and what still comes of it."""
        self._stopped.add(request_id)

    def forget(self, request_id: str) -> None:
        """Nothing more comes of a request that was stopped: its id may be used again."""
        self.put(Forget(request_id))

    def close(self) -> None:
        """Store what is on its way, and end."""
        for events in self._queues:
            events.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self, events: "queue.SimpleQueue[EngineEvent | Forget | None]") -> None:
        while (event := events.get()) is not None:
            if isinstance(event, Forget):
                self._stopped.discard(event.request_id)
            elif event.request_id not in self._stopped:
                self._pass_on(event)

    def _pass_on(self, event: EngineEvent) -> None:
        try:
            if self._store(event):
                self.tell(event)
        except Exception as error:  # the request's, whatever it is: the thread has others to serve
            logger.error("storing of %s failed", event.request_id, exc_info=error)
            self._stopped.add(event.request_id)
            self.on_error(event.request_id, describe_error(error))

    def _store(self, event: EngineEvent) -> bool:
        """Whether the event is to be passed on."""
        match event:
            case ChunkReady():
                assert event.segment is not None, "a stored video is made in segments"
                resume_point = ResumePoint(event.snapshot, event.latents)
                return self.store.commit(
                    event.request_id, event.chunk, event.segment, resume_point, event.device_seconds
                )
            case PromptSwitched(switch=switch) if switch is not None:
                self.store.update_request(event.request)
            case RequestFinished():
                self.store.finish(event.request_id, "completed")
            case RequestFailed():
                self.store.finish(event.request_id, "failed", event.message)
        return True
