"""Keys and values of prompts: counted where sessions are placed, and room for them made."""

import msgspec
import pytest

from helios_serve.core.session import PADDING_ROWS
from helios_serve.model_config import HeliosConfig, SamplerConfig
from helios_serve.options.sampling import PromptSwitch
from tests.support.scheduling import CONFIG, SESSION_BLOCKS, World, make_request, make_session, read

MID: HeliosConfig = msgspec.structs.replace(
    CONFIG, variant="mid", scheduler=SamplerConfig(solver="unipc")
)


def test_a_session_takes_the_rows_of_its_longest_prompt_and_of_the_negative_one() -> None:
    request = make_request("a", chunks=3, switches=(PromptSwitch(1, "longer"),))
    for config, rows in ((CONFIG, 50 + PADDING_ROWS), (MID, 50 + 7 + 2 * PADDING_ROWS)):
        session = make_session(request, config)
        for prompt in (read("x", 20), read("longer", 50), read("", 7)):
            session.prompts.learn(prompt)
        assert session.prompts.text_rows == rows


def test_a_session_whose_prompts_find_no_room_waits_until_others_are_done() -> None:
    world = World(text_rows=100)
    world.add("first", tokens=60)
    second = world.add("second", tokens=60)
    assert world.scheduler.stats().used_text_rows == 60 + PADDING_ROWS
    assert second.worker_id is None
    while second.worker_id is None:
        assert world.tick()
    assert "first" in world.delivered
    world.run()
    assert world.counts == {"first": 1, "second": 1}
    assert world.scheduler.stats().used_text_rows == 0


def test_prompts_that_turn_out_too_long_for_every_worker_are_told_and_block_nobody() -> None:
    world = World(workers=2, text_rows=100)
    world.add("long", ready=False)
    assert not world.scheduler.placement.unplaceable
    world.arrive("long", tokens=100)
    assert world.scheduler.placement.unplaceable == ["long"]
    world.add("short")
    world.scheduler.abort("long")
    world.run()
    assert world.counts == {"short": 1}
    assert not world.scheduler.has_unfinished


def test_a_switch_to_a_longer_prompt_takes_its_rows_at_once_even_if_they_are_not_free() -> None:
    world = World(text_rows=100)
    for name in ("a", "b"):
        world.add(name, chunks=3, tokens=30)
    world.run_to_edge(world.scheduler.sessions["a"], 1)
    world.switch("a", "much longer", tokens=80)
    assert world.scheduler.stats().used_text_rows == 80 + 30 + 2 * PADDING_ROWS
    world.scheduler.check_integrity()
    late = world.add("late", tokens=10)
    assert late.worker_id is None
    world.run()
    assert world.counts == {"a": 3, "b": 3, "late": 1}
    assert world.scheduler.stats().used_text_rows == 0


def test_a_shorter_prompt_and_one_that_comes_too_late_take_no_more_rows() -> None:
    world = World()
    session = world.add("a", chunks=2, tokens=30)
    world.switch("a", "short", tokens=5)
    assert session.reserved_rows == 30 + PADDING_ROWS
    world.run_to(session, 1, 1, 0)
    assert world.switch("a", "long", tokens=90) is None
    assert session.reserved_rows == 30 + PADDING_ROWS


@pytest.mark.parametrize("tier", ["default", "flex"])
def test_room_for_prompts_is_made_by_as_many_sessions_as_it_takes(tier: str) -> None:
    """Paused ones go at once, flex ones at a chunk edge; blocks are there in plenty."""
    world = World(text_rows=100)
    victims = [world.add(name, chunks=6, tokens=40, tier=tier) for name in ("a", "b")]
    world.run_to_edge(victims[1], 1)
    if tier == "default":
        for victim in victims:
            world.scheduler.pause(victim.session_id)
        while world.queues["worker-0"]:
            world.finish_one("worker-0")
    world.add("guest", chunks=2, tokens=40)
    while "guest" in world.scheduler.waiting:
        assert world.tick()
    assert sorted(victim.worker_id or "" for victim in victims) == ["", "worker-0"]
    for victim in victims:
        world.scheduler.resume(victim.session_id)
    world.run()
    assert world.counts == {"a": 6, "b": 6, "guest": 2}


def test_nobody_is_evicted_for_rows_that_would_not_be_enough() -> None:
    world = World(num_blocks=SESSION_BLOCKS * 4 + 1, text_rows=100)
    stays = world.add("stays", chunks=2, tokens=60)
    flex = world.add("flex", chunks=2, tokens=20, tier="flex")
    world.add("guest", tokens=50)
    assert not flex.is_leaving
    world.run()
    assert stays.status.is_finished
    assert world.counts == {"stays": 2, "flex": 2, "guest": 1}
