"""Noise that is drawn ahead, without advancing the visible state of the generator."""

from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Generator

from helios_serve.model_config import Geometry
from helios_serve.model_executor.models.helios.conditioning import (
    ChunkNoise,
    draw_chunk_noise,
)
from helios_serve.model_executor.worker.noise_stream import NoiseStream
from helios_serve.model_executor.worker.tensors import as_bytes

CHUNKS = 4


class Ahead(Executor):
    """An executor that runs each call at once."""

    def submit(self, work: Callable[..., Any], /, *_: Any, **__: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(work())
        return done


class Behind(Executor):
    """An executor that runs a call only when its result is read."""

    class Later(Future[Any]):
        work: Callable[[], Any]

        def result(self, timeout: float | None = None) -> Any:  # noqa: ARG002
            return self.work()

    def submit(self, work: Callable[..., Any], /, *_: Any, **__: Any) -> Future[Any]:
        later = self.Later()
        later.work = work
        return later


class Source:
    """Draws noise as a runner does, and counts draws."""

    def __init__(self) -> None:
        self.drawn = 0

    def __call__(self, generator: Generator) -> ChunkNoise:
        self.drawn += 1
        return draw_chunk_noise(generator, Geometry(64, 64), 3)


def drawn_in_turn(seed: int = 7) -> list[tuple[bytes, ChunkNoise]]:
    """Return each chunk's noise and the state before it, without drawing ahead."""
    generator, source = Generator().manual_seed(seed), Source()
    return [(as_bytes(generator.get_state()), source(generator)) for _ in range(CHUNKS)]


def equal(one: ChunkNoise, other: ChunkNoise) -> bool:
    pairs = zip((one.start, *one.stages), (other.start, *other.stages), strict=True)
    return all(torch.equal(*pair) for pair in pairs)


@pytest.mark.parametrize(
    "pool", [Ahead(), Behind(), ThreadPoolExecutor(1)], ids=["ahead", "behind", "thread"]
)
def test_the_state_is_that_before_the_next_draw_however_far_ahead_it_is(pool: Executor) -> None:
    stream = NoiseStream(Generator().manual_seed(7), Source(), pool)
    for state, noise in drawn_in_turn():
        assert stream.state == state
        assert equal(stream.take(is_last=False), noise)
    pool.shutdown()


def test_nothing_is_drawn_behind_the_last_chunk() -> None:
    source, generator = Source(), Generator().manual_seed(7)
    stream = NoiseStream(generator, source, Ahead())
    stream.take(is_last=False)
    assert source.drawn == 2
    stream.take(is_last=True)
    assert source.drawn == 2
    assert stream.state == as_bytes(generator.get_state()) == drawn_in_turn()[2][0]


def test_a_stream_goes_on_from_any_state() -> None:
    expected, generator = drawn_in_turn(), Generator()
    generator.set_state(torch.frombuffer(bytearray(expected[2][0]), dtype=torch.uint8))
    stream = NoiseStream(generator, Source(), Ahead())
    for _, noise in expected[2:]:
        assert equal(stream.take(is_last=False), noise)


def test_streams_that_share_a_thread_do_not_mix() -> None:
    with ThreadPoolExecutor(1) as pool:
        streams = {
            seed: NoiseStream(Generator().manual_seed(seed), Source(), pool) for seed in (7, 8)
        }
        for chunk in range(CHUNKS):
            for seed, stream in streams.items():
                assert equal(stream.take(is_last=False), drawn_in_turn(seed)[chunk][1])


def test_an_error_comes_with_the_chunk_that_it_belongs_to() -> None:
    source = Source()

    def draw(generator: Generator) -> ChunkNoise:
        if source.drawn == 1:
            raise MemoryError("no room for noise")
        return source(generator)

    with ThreadPoolExecutor(1) as pool:
        stream = NoiseStream(Generator().manual_seed(7), draw, pool)
        stream.take(is_last=False)
        with pytest.raises(MemoryError, match="no room for noise"):
            stream.take(is_last=True)
