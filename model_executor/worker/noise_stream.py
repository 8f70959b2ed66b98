"""The noise of a session's chunks, drawn ahead."""

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import NamedTuple

from torch import Generator

from helios_serve.model_executor.models.helios.conditioning import ChunkNoise
from helios_serve.model_executor.worker.tensors import as_bytes


class Drawn(NamedTuple):
    """A chunk's noise, and the generator's state behind it."""

    noise: ChunkNoise
    state: bytes


class NoiseStream:
    """Chunk after chunk from one generator; each next one is drawn while the last is denoised.

    `state` is the generator's before the first draw of the next chunk to be taken, however far it
    has run ahead.
    """

    def __init__(
        self, generator: Generator, draw: Callable[[Generator], ChunkNoise], pool: Executor
    ) -> None:
        self.state = as_bytes(generator.get_state())
        self._generator = generator
        self._noise_from = draw
        self._pool = pool
        self._next: Future[Drawn] | None = None

    def take(self, *, is_last: bool) -> ChunkNoise:
        """The next chunk's noise; unless it is the last, the one behind it is begun."""
        noise, self.state = self._draw() if self._next is None else self._next.result()
        self._next = None if is_last else self._pool.submit(self._draw)
        return noise

    def _draw(self) -> Drawn:
        noise = self._noise_from(self._generator)
        return Drawn(noise, as_bytes(self._generator.get_state()))
