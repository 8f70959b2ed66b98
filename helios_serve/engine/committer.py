"""Events on their way to readers, by way of the disk: nothing is told that could still be lost."""

import queue
import threading
from collections.abc import Callable

from helios_serve.engine.events import (
    ChunkReady,
    EngineEvent,
    PromptSwitched,
    RequestFailed,
    RequestFinished,
)
from helios_serve.errors import StorageError
from helios_serve.logger import logger
from helios_serve.store.snapshots import Kept
from helios_serve.store.video_store import VideoStore

NUM_THREADS = 4


class Committer:
    """Stores what events say and passes them on to `tell`, each request's in their order.

    A chunk that cannot be stored is not passed on: `on_error` is told, with the request's id.
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
        self._queues: list[queue.SimpleQueue[EngineEvent | None]] = []
        self._threads: list[threading.Thread] = []
        for number in range(NUM_THREADS):
            events: queue.SimpleQueue[EngineEvent | None] = queue.SimpleQueue()
            thread = threading.Thread(
                target=self._run, args=(events,), name=f"commit {number}", daemon=True
            )
            thread.start()
            self._queues.append(events)
            self._threads.append(thread)

    def put(self, event: EngineEvent) -> None:
        """Never waits; files are written in a thread."""
        self._queues[hash(event.request_id) % NUM_THREADS].put(event)

    def close(self) -> None:
        """Store what is on its way, and end."""
        for events in self._queues:
            events.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self, events: "queue.SimpleQueue[EngineEvent | None]") -> None:
        while (event := events.get()) is not None:
            try:
                if self._store(event):
                    self.tell(event)
            except StorageError as error:
                logger.error("storing of %s failed", event.request_id, exc_info=error)
                self.on_error(event.request_id, str(error))

    def _store(self, event: EngineEvent) -> bool:
        """Whether the event is to be passed on."""
        match event:
            case ChunkReady():
                assert event.segment is not None, "a stored video is made in segments"
                kept = Kept(event.snapshot, event.latents)
                return self.store.commit(event.request_id, event.chunk, event.segment, kept)
            case PromptSwitched(switch=switch) if switch is not None:
                self.store.update_request(event.request)
            case RequestFinished():
                self.store.finish(event.request_id, "completed")
            case RequestFailed():
                self.store.finish(event.request_id, "failed", event.message)
        return True
