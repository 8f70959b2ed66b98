"""Draining workers."""

from collections import Counter

import pytest

from tests.support.scheduling import SESSION_BLOCKS, World


def repeated_steps(world: World) -> set[str]:
    """Sessions that took a step more than once."""
    taken = Counter((step.session_id, step.cursor) for _, step in world.done)
    return {name for (name, _), count in taken.items() if count > 1}


def test_sessions_leave_a_draining_worker_at_their_chunk_edges() -> None:
    world = World(workers=2)
    sessions = [
        world.add(f"{tier}-{index}", chunks=5, tier=tier, tenant=tier)
        for tier in ("priority", "default", "flex")
        for index in range(2)
    ]
    world.run_to_edge(sessions[-1], 1)
    leaving = [session for session in sessions if session.worker_id == "worker-0"]
    assert len(leaving) == 3
    world.scheduler.drain(world.worker("worker-0"))
    while not world.worker("worker-0").is_empty:
        world.scheduler.check_integrity()
        assert world.tick()
    assert {session.worker_id for session in leaving if not session.status.is_finished} == {
        "worker-1"
    }
    assert not world.books["worker-0"].opened
    assert not any(session.is_leaving for session in leaving)
    world.lose_worker("worker-0")
    world.run()
    assert world.counts == {session.session_id: 5 for session in sessions}
    assert not repeated_steps(world)


def test_paused_sessions_leave_at_once_and_are_taken_up_again_elsewhere() -> None:
    world = World(workers=2)
    session = world.add("a", chunks=3)
    world.run_to(session, 1, 1, 1)
    world.scheduler.pause("a")
    world.scheduler.drain(world.worker("worker-0"))
    while world.queues["worker-0"]:
        world.finish_one("worker-0")
    assert (session.worker_id, session.edge_chunk) == (None, 1)
    world.tick()
    assert world.worker("worker-0").is_empty
    world.scheduler.resume("a")
    assert session.worker_id == "worker-1"
    world.run()
    assert world.counts == {"a": 3}


def test_without_another_worker_sessions_wait_for_one() -> None:
    world = World()
    session = world.add("a", chunks=4)
    world.run_to_edge(session, 1)
    world.scheduler.drain(world.worker("worker-0"))
    while world.tick():
        pass
    assert world.worker("worker-0").is_empty
    assert session.edge_chunk < 4
    world.add_worker("late", SESSION_BLOCKS + 1)
    world.run()
    assert world.counts == {"a": 4}
    assert not repeated_steps(world)


def test_a_session_at_its_last_chunk_ends_on_the_draining_worker() -> None:
    world = World(workers=2)
    session = world.add("a", chunks=2)
    world.run_to(session, 1, 1, 0)
    world.scheduler.drain(world.worker("worker-0"))
    world.run()
    assert session.worker_id == "worker-0"
    assert world.counts == {"a": 2}
    assert world.worker("worker-0").is_empty


@pytest.mark.parametrize("reason", ["drain", "flex makes room"])
def test_a_leaving_session_that_is_paused_behind_its_last_step_is_done(reason: str) -> None:
    world = World(num_blocks=SESSION_BLOCKS + 1)
    session = world.add("a", chunks=2, tier="flex")
    world.run_to(session, 1, 0, 0)
    if reason == "drain":
        world.run_to(session, 1, 0, 1)
        world.scheduler.drain(world.worker("worker-0"))
    else:
        world.run_to(session, 1, 0, 1)
        world.add("guest")
    world.run_to(session, 2, 0, 0)
    assert session.in_flight
    world.scheduler.pause("a")
    world.scheduler.resume("a")
    world.run()
    assert world.counts["a"] == 2
    assert len(world.steps("a")) == 12


def test_a_leaving_session_that_is_paused_leaves_at_once() -> None:
    world = World(workers=2)
    session = world.add("a", chunks=3)
    world.run_to(session, 1, 1, 0)
    world.scheduler.drain(world.worker("worker-0"))
    assert world.scheduler.sessions["a"].worker_id == "worker-0"
    world.scheduler.pause("a")
    while world.tick():
        pass
    assert (session.worker_id, session.edge_chunk) == (None, 1)
    assert world.worker("worker-0").is_empty
    world.scheduler.resume("a")
    world.run()
    assert world.counts == {"a": 3}


def test_room_on_a_draining_worker_is_for_nobody() -> None:
    """Blocks freed on a draining worker do not keep sessions from making room on other workers."""
    world = World(workers=2, num_blocks=SESSION_BLOCKS + 1)
    for index in range(2):
        world.add(f"flex-{index}", chunks=6, tier="flex")
    world.scheduler.drain(world.worker("worker-0"))
    guest = world.add("guest")
    while guest.worker_id is None:
        assert world.tick()
    assert guest.worker_id == "worker-1"
    assert world.counts["flex-1"] < 6
    world.run()
    assert world.counts == {"flex-0": 6, "flex-1": 6, "guest": 1}


def test_a_closed_scheduler_comes_to_rest_at_chunk_edges() -> None:
    world = World(workers=2)
    running = [world.add(f"{index}", chunks=5) for index in range(4)]
    world.run_to_edge(running[-1], 1)
    before = [session.cursor.chunk for session in running]
    late = world.add("late", chunks=2)
    world.scheduler.close()
    while world.scheduler.stats().running:
        world.scheduler.check_integrity()
        assert world.tick()
    assert late.worker_id is None or late.edge_chunk == 1
    assert all(session.at_chunk_edge for session in running)
    for session, chunk in zip(running, before, strict=True):
        assert chunk <= session.edge_chunk <= chunk + 1
    world.add("later still", chunks=1)
    assert not world.tick()
    assert not repeated_steps(world)
