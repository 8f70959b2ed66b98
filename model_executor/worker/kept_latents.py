"""Latents that stay on the device until they are decoded there."""

import threading
from collections import OrderedDict
from typing import NamedTuple

from torch import Tensor

from helios_serve.model_executor.streams import DeviceStreams, Passing

MAX_BYTES = 128 << 20
"""Bytes of latents that are kept at most: 60 chunks at 640x384, as many as may wait to be decoded
and more."""


class Kept(NamedTuple):
    """Latents, and the event after which they are written."""

    latents: Tensor
    written: Passing


class KeptLatents:
    """Latents of finished chunks, by session and chunk, for the decoder of the same worker.

    The engine has a copy, so the oldest are dropped where there are too many. One thread puts,
    another one takes.
    """

    def __init__(self, streams: DeviceStreams) -> None:
        self.streams = streams
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, int], Kept] = OrderedDict()
        self._bytes = 0

    def put(self, session_id: str, chunk: int, latents: Tensor) -> None:
        """Keep latents that the current stream writes."""
        kept = Kept(latents, self.streams.record())
        with self._lock:
            self._drop((session_id, chunk))
            self._kept[session_id, chunk] = kept
            self._bytes += latents.nbytes
            while self._bytes > MAX_BYTES:
                self._drop(next(iter(self._kept)))

    def take(self, session_id: str, chunk: int) -> Tensor | None:
        """Return latents, for the current stream to read, and forget them; None if they are not
        there."""
        with self._lock:
            kept = self._drop((session_id, chunk))
        if kept is None:
            return None
        self.streams.wait_for(kept.written)
        self.streams.share(kept.latents)
        return kept.latents

    def _drop(self, key: tuple[str, int]) -> Kept | None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self._bytes -= kept.latents.nbytes
        return kept
