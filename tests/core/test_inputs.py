"""Sessions that wait for encoded prompts, or for an encoded reference."""

import pytest

from helios_serve.errors import CapacityError
from helios_serve.options.scheduling import SchedulingConfig
from tests.support.scheduling import SESSION_BLOCKS, World, reference


@pytest.mark.parametrize("video", [False, True])
@pytest.mark.parametrize("tier", ["priority", "default", "flex"])
def test_a_session_begins_when_its_inputs_are_there_and_holds_up_nobody(
    tier: str, video: bool
) -> None:
    world = World()
    early = world.add("early", ready=False, tier=tier, video=video)
    world.add("late", tier=tier)
    world.run()
    assert (world.counts, early.worker_id) == ({"late": 1}, None)
    world.scheduler.check_integrity()
    world.arrive("early")
    assert early.worker_id == "worker-0"
    world.run()
    assert world.counts == {"early": 1, "late": 1}


def test_a_prompt_alone_is_not_enough_where_there_is_a_reference() -> None:
    world = World()
    session = world.add("a", ready=False, video=True)
    session.seed(reference(session))
    world.scheduler.inputs_arrived("a")
    assert session.worker_id is None
    world.arrive("a")
    assert session.worker_id == "worker-0"
    assert not session.request.has_reference


def test_a_pause_outlasts_the_inputs() -> None:
    world = World()
    session = world.add("a", ready=False)
    world.scheduler.pause("a")
    world.arrive("a")
    assert session.worker_id is None
    world.scheduler.resume("a")
    assert session.worker_id == "worker-0"


def test_a_session_that_is_resumed_still_waits_for_its_inputs() -> None:
    world = World()
    session = world.add("a", ready=False)
    world.scheduler.pause("a")
    world.scheduler.resume("a")
    assert session.worker_id is None
    world.arrive("a")
    assert session.worker_id == "worker-0"


def test_a_session_that_is_aborted_before_its_inputs_leaves_its_place_in_the_queue() -> None:
    world = World(SchedulingConfig(max_queued=1))
    world.add("a", ready=False)
    with pytest.raises(CapacityError, match="queue is full: 1 sessions waiting"):
        world.add("b")
    world.scheduler.abort("a")
    world.scheduler.check_integrity()
    world.add("b")
    world.run()
    assert world.counts == {"b": 1}


def test_inputs_that_come_more_than_once_place_a_session_once() -> None:
    """In line, at its head while there is no room, and with a worker."""
    world = World(num_blocks=SESSION_BLOCKS + 1)
    world.add("first", chunks=2)
    world.add("head")
    world.add("behind", ready=False)
    for _ in range(3):
        for name in ("head", "behind", "first"):
            world.arrive(name)
        world.scheduler.check_integrity()
    world.run()
    assert {name: len(world.steps(name)) for name in world.counts} == {
        "first": 12,
        "head": 6,
        "behind": 6,
    }


def test_a_session_that_lost_its_worker_needs_no_inputs_again() -> None:
    world = World(workers=2)
    session = world.add("a", chunks=3, video=True)
    world.run_to_edge(session, 1)
    assert session.worker_id is not None
    world.lose_worker(session.worker_id)
    assert session.worker_id is not None
    world.run()
    assert world.counts == {"a": 3}
