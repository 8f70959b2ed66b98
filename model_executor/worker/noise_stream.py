"""Draws the noise of a session's chunks ahead of time."""

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import NamedTuple

from torch import Generator

from helios_serve.model_executor.models.helios.conditioning import ChunkNoise
from helios_serve.model_executor.worker.tensors import as_bytes


class Drawn(NamedTuple):
    """A chunk's noise, and the generator's state after it was drawn."""

    noise: ChunkNoise
    state: bytes


class NoiseStream:
    """Draws the noise of consecutive chunks from one generator.

    The noise of the next chunk is drawn by `pool` while the current chunk is denoised. `state` is
    the generator's state before the first draw for the next chunk to be taken, even if its noise
    has been drawn already.
    """

    def __init__(
        self, generator: Generator, draw: Callable[[Generator], ChunkNoise], pool: Executor
    ) -> None:
        self.state = as_bytes(generator.get_state())
        self._generator = generator
        self._draw_noise = draw
        self._pool = pool
        self._next: Future[Drawn] | None = None

    def take(self, *, is_last: bool) -> ChunkNoise:
        """Return the next chunk's noise. Starts to draw the following one's unless `is_last`."""
        noise, self.state = self._draw() if self._next is None else self._next.result()
        self._next = None if is_last else self._pool.submit(self._draw)
        return noise

    def _draw(self) -> Drawn:
        noise = self._draw_noise(self._generator)
        return Drawn(noise, as_bytes(self._generator.get_state()))
