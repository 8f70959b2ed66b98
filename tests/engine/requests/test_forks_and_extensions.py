"""Videos that continue others: forks and extensions."""

import asyncio
from contextlib import aclosing
from typing import Any

import pytest
import torch

from helios_serve.engine.requests.chunk_stream import VideoChunk
from helios_serve.errors import InvalidRequestError, RequestFailedError
from helios_serve.model_executor.worker.tensors import as_tensor
from helios_serve.options.sampling import PromptSwitch
from helios_serve.store.video_store import VideoStore
from tests.support.engines import (
    core,
    engine_of,
    fragments,
    indices,
    make,
    quick_model,
    read,
    request,
    run,
    undisturbed,
    until,
)
from tests.support.models import loaded

LONG = 33 * 400
"""More frames than a test generates: such a request ends only when it is aborted."""


def test_children_share_the_beginning_and_go_their_own_ways() -> None:
    own = core()
    parent = request("parent", 33 * 4, max_lead_chunks=1, output="segment")

    async def main() -> dict[str, list[VideoChunk]]:
        async with engine_of(own) as engine:
            with pytest.raises(InvalidRequestError, match="got request id 'nobody', expected one"):
                await engine.fork("nobody", lambda _: [])
            await engine.submit(parent)
            async with aclosing(engine.watch("parent")) as chunks:
                head = [await anext(chunks)]
                children = [
                    request(name, 33 * 4, prompt=prompt, output="segment")
                    for name, prompt in (("same", "a dog"), ("again", "a dog"), ("cat", "a cat"))
                ]
                await engine.fork("parent", lambda _: children)
                made = await asyncio.gather(*(read(engine, child.request_id) for child in children))
                head += [chunk async for chunk in chunks]
            return {"parent": head, "same": made[0], "again": made[1], "cat": made[2]}

    videos = run(main())
    assert fragments(videos.pop("parent")) == undisturbed(parent)
    first = {indices(chunks)[0] for chunks in videos.values()}
    (edge,) = first
    assert edge >= 1
    tails = [tuple(fragments(chunks)) for chunks in videos.values()]
    assert [indices(chunks) for chunks in videos.values()] == [list(range(edge, 4))] * 3
    assert len({*tails, tuple(undisturbed(parent)[edge:])}) == 4


@pytest.mark.parametrize("is_stored", [False, True])
def test_a_fork_is_of_all_children_or_of_none(is_stored: bool, store: VideoStore) -> None:
    own, mid = core(), core("nano-mid")

    async def main() -> None:
        async with engine_of(own, store if is_stored else None, **{"nano-mid": mid}) as engine:
            await engine.submit(request("parent", LONG, model="nano-mid"))
            async with aclosing(engine.watch("parent")) as chunks:
                await anext(chunks)
            children = [request("fits", LONG), request("does not", LONG, width=128)]
            with pytest.raises(InvalidRequestError, match="got size 128x64, expected 64x64"):
                await engine.fork("parent", lambda _: children)
            with pytest.raises(InvalidRequestError, match="'parent', which is in use"):
                await engine.fork(
                    "parent", lambda _: [request("too", LONG), request("parent", LONG)]
                )
            assert [job.id for job in store.jobs()] == ["parent"] * is_stored
            await until(lambda: "fits" not in mid.scheduler.sessions)
            await engine.fork("parent", lambda _: [request("fits", LONG)])
            assert not own.scheduler.sessions  # the child has the parent's model
            await engine.abort("parent")
            await engine.abort("fits")

    run(main())


def test_a_child_that_fails_fails_alone(store: VideoStore, monkeypatch: pytest.MonkeyPatch) -> None:
    own, encoder = core(), loaded(quick_model("nano").text_encoder)
    encode = encoder.encode

    def encode_or_fail(text: str, *rest: Any) -> Any:
        if text == "bad":
            raise RuntimeError("a bad prompt")
        return encode(text, *rest)

    monkeypatch.setattr(encoder, "encode", encode_or_fail)

    async def main() -> None:
        async with engine_of(own, store) as engine:
            await make(engine, request("parent", 33))
            asked = {"good": "a cat", "bad": "bad", "also good": "a bird"}
            children = [
                request(name, 66).with_switch(PromptSwitch(1, asked[name])) for name in asked
            ]
            await engine.fork("parent", lambda _: children)
            for name in ("good", "also good"):
                assert indices(await read(engine, name)) == [0, 1]
            with pytest.raises(RequestFailedError, match="RuntimeError: a bad prompt"):
                await read(engine, "bad")
            jobs = {job.id: job.status for job in store.jobs()}
            assert jobs == dict.fromkeys(jobs, "completed") | {"bad": "failed"}

    run(main())


def test_an_extension_is_a_longer_video(store: VideoStore) -> None:
    """It begins with the first video, whose last chunk is repeated in full if it was cut."""
    longer = undisturbed(request("x", 132))

    async def main() -> dict[str, list[VideoChunk]]:
        async with engine_of(core(), store) as engine:
            videos = {}
            for name, frames in (("cut", 80), ("whole", 66)):
                await make(engine, request(name, frames))
                await engine.submit(request(f"{name} on", 132), extends=name)
                videos[name] = await read(engine, f"{name} on")
            await engine.submit(request("further", 140), extends="whole on")
            videos["further"] = await read(engine, "further", 0)
            with pytest.raises(
                InvalidRequestError, match="'nobody' to extend, expected a finished"
            ):
                await engine.submit(request("x", 165), extends="nobody")
            with pytest.raises(InvalidRequestError, match="got num_frames 66, expected more than"):
                await engine.submit(request("x", 66), extends="cut")
            assert store.job("x") is None
            return videos

    videos = run(main())
    assert indices(videos["cut"]) == indices(videos["whole"]) == [0, 1, 2, 3]
    assert fragments(videos["cut"]) == fragments(videos["whole"]) == longer
    assert fragments(videos["further"]) == undisturbed(request("x", 140))


def test_an_extension_has_the_model_of_its_parent(store: VideoStore) -> None:
    expected = undisturbed(request("x", 99, model="nano-mid"))

    async def main() -> list[VideoChunk]:
        async with engine_of(core(), store, **{"nano-mid": core("nano-mid")}) as engine:
            await make(engine, request("first", 66, model="nano-mid"))
            await engine.submit(request("second", 99), extends="first")
            return await read(engine, "second")

    assert fragments(run(main())) == expected


def test_latents_go_on_from_a_snapshot_without_a_store() -> None:
    async def main() -> tuple[list[VideoChunk], ...]:
        async with engine_of(core()) as engine:
            whole = await make(engine, request("whole", 132))
            await engine.submit(request("on", 132), continue_from=whole[1].snapshot)
            return whole, await read(engine, "on")

    whole, rest = run(main())
    assert indices(rest) == [2, 3]
    for before, again in zip(whole[2:], rest, strict=True):
        assert before.latents is not None
        assert again.latents is not None
        assert torch.equal(as_tensor(before.latents), as_tensor(again.latents))
