"""Videos that wait for their readers, and prompt switches."""

import asyncio
from contextlib import aclosing

import pytest

from helios_serve.engine.loop.engine_core import EngineCore
from helios_serve.engine.requests.chunk_stream import VideoChunk
from helios_serve.errors import (
    InvalidRequestError,
)
from helios_serve.options.sampling import PromptSwitch
from helios_serve.store.video_store import VideoStore
from tests.support.engines import (
    core,
    engine_of,
    fragments,
    indices,
    make,
    read,
    request,
    run,
    undisturbed,
    until,
)

LONG = 33 * 400
"""More frames than a test generates: such a request ends only when it is aborted."""


async def held(own: EngineCore, store: VideoStore, name: str) -> int:
    """Wait until the video takes no more steps, and return the number of stored chunks."""
    session = own.scheduler.sessions[name]
    await until(lambda: session.clock.is_paused and not session.in_flight)
    await until(lambda: len(store.segments(name)) == session.edge_chunk)
    return session.edge_chunk


@pytest.mark.parametrize("lead", [1, 3])
def test_a_video_is_made_only_so_far_ahead_of_its_reader(lead: int, store: VideoStore) -> None:
    """It is paused after a step of the next chunk, and takes at most one more step."""
    own = core()

    async def main() -> None:
        async with engine_of(own, store) as engine:
            await engine.submit(request("a", LONG, max_lead_chunks=lead))
            await until(lambda: "a" in own.scheduler.sessions)
            assert await held(own, store, "a") == lead
            async with aclosing(engine.watch("a")) as chunks:
                for num_read in range(1, 4):
                    assert (await anext(chunks)).index == num_read - 1
                    await until(lambda n=num_read: len(store.segments("a")) >= n + lead)  # type: ignore[misc]
                    assert await held(own, store, "a") == num_read + lead
            await engine.abort("a")

    run(main())


@pytest.mark.parametrize("is_stored", [False, True])
def test_a_reader_who_keeps_up_gets_the_whole_video(is_stored: bool, store: VideoStore) -> None:
    """Even if a pause and a read coincide."""
    wanted = request("a", 33 * 6, max_lead_chunks=1, output="segment")

    async def main() -> list[VideoChunk]:
        async with engine_of(core(), store if is_stored else None) as engine:
            return await make(engine, wanted)

    assert fragments(run(main())) == undisturbed(wanted)


def test_a_held_video_goes_on_for_another_reader(store: VideoStore) -> None:
    own = core()

    async def main() -> None:
        async with engine_of(own, store) as engine:
            await engine.submit(request("a", 33 * 6, max_lead_chunks=1))
            await held(own, store, "a")
            async with aclosing(engine.watch("a")) as chunks:
                await anext(chunks)
            assert indices(await read(engine, "a")) == list(range(6))

    run(main())


def test_a_pause_is_independent_of_the_lead(store: VideoStore) -> None:
    own = core()

    async def main() -> None:
        async with engine_of(own, store) as engine:
            await engine.submit(request("a", 33 * 8, max_lead_chunks=1))
            made = await held(own, store, "a")
            await engine.pause("a")
            await engine.pause("a")
            async with aclosing(engine.watch("a")) as chunks:
                for _ in range(made):
                    await anext(chunks)
            assert await held(own, store, "a") == made  # all read, but paused
            await engine.resume("a")
            await until(lambda: len(store.segments("a")) > made)
            made = await held(own, store, "a")
            await engine.resume("a")  # was not paused: the lead still holds it
            assert await held(own, store, "a") == made
            assert len(await read(engine, "a")) == 8
            with pytest.raises(InvalidRequestError, match="got request id 'a', expected one that"):
                await engine.pause("a")

    run(main())


def test_a_switch_is_the_one_that_could_have_been_asked_for_before() -> None:
    own = core()

    async def main() -> tuple[PromptSwitch, list[VideoChunk]]:
        async with engine_of(own) as engine:
            wanted = request("a", 33 * 4, max_lead_chunks=1, output="segment")
            await engine.submit(wanted)
            async with aclosing(engine.watch("a")) as chunks:
                head = [await anext(chunks)]
                switch = await engine.switch_prompt("a", "a red ball", transition_chunks=1)
                return switch, head + [chunk async for chunk in chunks]

    switch, chunks = run(main())
    assert 1 <= switch.chunk < 4
    assert switch == PromptSwitch(switch.chunk, "a red ball", 1)
    expected = undisturbed(request("x", 33 * 4, switches=(switch,)))
    assert fragments(chunks) == expected != undisturbed(request("x", 33 * 4))


def test_several_switches_at_once_are_each_answered() -> None:
    own = core()

    async def main() -> list[PromptSwitch]:
        async with engine_of(own) as engine:
            await engine.submit(request("a", LONG))
            texts = ("a cat", "a bird", "a cat")
            switches = await asyncio.gather(*(engine.switch_prompt("a", text) for text in texts))
            await engine.abort("a")
            return switches

    switches = run(main())
    assert [switch.prompt for switch in switches] == ["a cat", "a bird", "a cat"]
    assert [switch.chunk for switch in switches] == sorted(switch.chunk for switch in switches)


def test_switches_that_cannot_be_made_are_refused(store: VideoStore) -> None:
    own = core()

    async def main() -> None:
        async with engine_of(own, store) as engine:
            with pytest.raises(InvalidRequestError, match="got request id 'a', expected one that"):
                await engine.switch_prompt("a", "a red ball")
            await engine.submit(request("a", 33))  # one chunk: it has begun, or is about to
            with pytest.raises(InvalidRequestError, match="no chunk left|a running video"):
                await engine.switch_prompt("a", "a red ball")
            await engine.submit(request("b", LONG, max_lead_chunks=1))
            with pytest.raises(InvalidRequestError, match="a lone surrogate at 0"):
                await engine.switch_prompt("b", "\ud800")
            await held(own, store, "b")
            assert (await engine.switch_prompt("b", "a red ball")).chunk <= 3
            await engine.abort("b")
            with pytest.raises(InvalidRequestError, match="got request id 'b', expected one that"):
                await engine.switch_prompt("b", "a bird")

    run(main())
