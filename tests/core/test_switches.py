"""Prompt switches of running videos: the first chunk, and what is sent to workers."""

from collections import Counter

import pytest

from helios_serve.options.sampling import PromptSwitch
from tests.support.scheduling import World, make_request, make_session, read


def mixes(world: World, name: str) -> list[dict[str, float]]:
    """Return the prompts in effect at each chunk of a session."""
    starts = [step.start for step in world.steps(name) if step.start is not None]
    return [{item.prompt: item.weight for item in start.mix} for start in starts]


@pytest.mark.parametrize(
    ("cursor", "chunk"),
    [
        ((0, 0, 0), 1),
        ((0, 1, 0), 1),
        ((1, 0, 0), 1),
        ((1, 0, 1), 2),
        ((2, 2, 1), 3),
        ((3, 0, 0), 3),
        ((3, 0, 1), None),
    ],
)
def test_a_switch_takes_effect_at_the_next_chunk_that_is_not_planned(
    cursor: tuple[int, int, int], chunk: int | None
) -> None:
    world = World()
    session = world.add("a", chunks=4)
    world.run_to(session, *cursor)
    switch = world.switch("a", "y")
    assert switch == (None if chunk is None else PromptSwitch(chunk, "y"))
    world.run()
    begun = 4 if chunk is None else chunk
    turning = [{"x": 1.0}, {"x": 0.5, "y": 0.5}, {"y": 1.0}]
    assert mixes(world, "a") == ([{"x": 1.0}] * begun + turning)[:4]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_switch_before_the_beginning_takes_effect_at_chunk_one(workers: int) -> None:
    world = World(workers=workers)
    world.add("a", chunks=3, ready=False)
    assert world.switch("a", "y") == PromptSwitch(1, "y")
    if not workers:
        world.add_worker("worker-0", 4000)
    world.run()
    assert mixes(world, "a") == [{"x": 1.0}, {"x": 1.0}, {"x": 0.5, "y": 0.5}]


def test_a_video_of_one_chunk_has_none_left_to_switch_at() -> None:
    world = World()
    world.add("a")
    assert world.switch("a", "y") is None


def test_a_later_switch_replaces_one_that_is_not_reached() -> None:
    world = World()
    given = (PromptSwitch(1, "early", 0), PromptSwitch(3, "never", 0))
    session = world.add("a", chunks=5, switches=given)
    world.run_to(session, 1, 1, 0)
    for prompt in ("never either", "y"):
        assert world.switch("a", prompt) == PromptSwitch(2, prompt)
    world.run()
    assert mixes(world, "a")[:3] == [{"x": 1.0}, {"early": 1.0}, {"early": 1.0}]
    assert mixes(world, "a")[3:] == [{"early": 0.5, "y": 0.5}, {"y": 1.0}]


def test_switches_take_effect_in_the_order_in_which_they_were_asked_for() -> None:
    session = make_session(make_request("a", chunks=3))
    for prompt in ("slow", "bad", "quick", "quick"):
        session.prompts.pending.append(PromptSwitch(0, prompt))
    session.prompts.learn(read("quick"))
    assert list(session.apply_switches()) == []
    assert list(session.prompts.drop_switches(("bad",))) == ["bad"]
    session.prompts.learn(read("slow"))
    applied = [prompt for prompt, _ in session.apply_switches()]
    assert applied == ["slow", "quick", "quick"]
    assert session.request.params.switches == (PromptSwitch(1, "quick"),)


def test_a_worker_hears_of_a_prompt_once_and_another_one_of_all_of_them() -> None:
    world = World(workers=2)
    session = world.add("a", chunks=6)
    world.run_to_edge(session, 1)
    for prompt in ("y", "z", "y"):
        world.switch("a", prompt)
    world.run_to_edge(session, 3)
    told = [
        prompt.prompt
        for step in world.steps("a")
        if step.start
        for prompt in step.start.new_prompts
    ]
    assert Counter(told) == {"y": 1, "z": 1}
    first = session.worker_id
    assert first is not None
    world.lose_worker(first)
    (second,) = world.books
    world.tick()
    assert world.books[second].opened["a"].prompts == {"x", "y", "z"}
    world.run()
    assert world.counts == {"a": 6}


def test_a_prompt_that_is_read_twice_is_told_once() -> None:
    session = make_session(make_request("a"))
    for _ in range(2):
        session.prompts.learn(read("y"))
    assert [prompt.prompt for prompt in session.prompts.take_unsent()] == ["y"]
