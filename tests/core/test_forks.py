"""Sessions that begin with the history of another one. The fake workers check what they read."""

from typing import Any

import pytest

from helios_serve.core.session import Session
from tests.support.scheduling import SESSION_BLOCKS, World

PARENT_CHUNKS = 6


def grown(world: World, **fields: Any) -> Session:
    """A session that has just made its third chunk."""
    parent = world.add("parent", chunks=PARENT_CHUNKS, **fields)
    world.run_to_edge(parent, 3)
    return parent


def test_forks_share_the_blocks_of_their_parent_and_are_told_no_frames() -> None:
    world = World()
    parent = grown(world)
    used = world.scheduler.stats().used_blocks
    children = world.fork(parent, "a", "b", "c", chunks=5)
    assert world.scheduler.stats().used_blocks == used
    opening = {new.session_id: new for new in world.scheduler.workers["worker-0"].opening}
    assert opening.keys() == {"a", "b", "c"}
    for new in opening.values():
        assert new.snapshot is not None
        assert (new.snapshot.anchor, new.snapshot.frames, new.blocks.append) == (b"", b"", ())
    world.scheduler.check_integrity()
    world.run()
    assert world.counts == {"parent": PARENT_CHUNKS, "a": 2, "b": 2, "c": 2}
    assert [child.snapshot.chunk for child in children if child.snapshot] == [5, 5, 5]
    assert world.scheduler.stats().used_blocks == 0


def test_a_child_prefers_the_worker_of_its_kin_although_another_one_is_idle() -> None:
    world = World(workers=2)
    parent = grown(world)
    children = world.fork(parent, "a", "b", chunks=4)
    assert {child.worker_id for child in children} == {parent.worker_id}


def test_a_child_that_finds_no_room_there_takes_its_history_elsewhere() -> None:
    world = World(num_blocks=SESSION_BLOCKS + 1)
    parent = grown(world)
    world.add_worker("other", SESSION_BLOCKS + 1)
    used = world.scheduler.stats().used_blocks
    (child,) = world.fork(parent, "a", chunks=5)
    assert child.worker_id == "other"
    assert world.scheduler.stats().used_blocks == used + 60 * (1 + 19)
    world.run()
    assert world.counts == {"parent": PARENT_CHUNKS, "a": 2}


def test_children_of_a_parent_that_is_gone_on_or_finished_share_with_each_other() -> None:
    world = World()
    parent = grown(world)
    snapshot = parent.snapshot
    world.run()
    for name in ("a", "b"):
        world.add(name, snapshot=snapshot, siblings=("parent", "a", "b"), chunks=5)
    assert world.scheduler.stats().used_blocks == 60 * (1 + 19)
    world.run()
    assert world.counts == {"parent": PARENT_CHUNKS, "a": 2, "b": 2}


@pytest.mark.parametrize("ending", ["abort", "finish", "lost"])
def test_a_parent_may_end_before_its_children_begin(ending: str) -> None:
    world = World(workers=2)
    parent = grown(world)
    world.fork(parent, "a", "b", chunks=5)
    if ending == "abort":
        world.scheduler.abort("parent")
    elif ending == "lost":
        assert parent.worker_id is not None
        world.lose_worker(parent.worker_id)
    else:
        for name in ("a", "b"):
            world.scheduler.pause(name)
        world.run()
        assert parent.status.is_finished
        for name in ("a", "b"):
            world.scheduler.resume(name)
    world.run()
    counts = world.counts
    assert (counts["a"], counts["b"]) == (2, 2)
    assert world.scheduler.stats().used_blocks == 0


def test_a_child_does_not_rely_on_a_sibling_that_may_never_be_opened() -> None:
    world = World()
    parent = grown(world)
    snapshot = parent.snapshot
    world.run()
    for name in ("a", "b"):
        world.add(name, snapshot=snapshot, siblings=("a", "b"), chunks=5)
    world.scheduler.abort("a")
    world.run()
    assert world.counts == {"parent": PARENT_CHUNKS, "b": 2}


def test_a_child_that_comes_back_has_its_own_history_and_not_its_siblings() -> None:
    """Both are at the same chunk of different videos, and one was evicted there."""
    world = World(num_blocks=2 * SESSION_BLOCKS + 1)
    parent = world.add("parent", chunks=1)
    world.run()
    a, b = world.fork(parent, "a", "b", chunks=4)
    for child in (a, b):
        world.run_to_edge(child, 2)
        world.scheduler.pause(child.session_id)
    while world.tick():
        pass
    assert a.cursor.chunk == b.cursor.chunk == 2
    world.add("guest")
    world.run()
    assert (a.worker_id, b.worker_id) == (None, "worker-0")
    for child in (a, b):
        world.scheduler.resume(child.session_id)
    assert a.worker_id == "worker-0"
    world.run()
    assert world.counts == {"parent": 1, "guest": 1, "a": 3, "b": 3}


@pytest.mark.parametrize("is_back", [False, True])
def test_a_parent_that_is_at_another_chunk_is_no_help(is_back: bool) -> None:
    """Its next chunk is done, or all of it was given out."""
    world = World()
    parent = grown(world)
    snapshot = parent.snapshot
    if is_back:
        world.run_to_edge(parent, 4)
    else:
        world.run_to(parent, 4, 0, 0)
    assert (parent.edge_chunk == 4) == is_back
    used = world.scheduler.stats().used_blocks
    world.add("a", snapshot=snapshot, siblings=("parent",), chunks=5)
    assert world.scheduler.stats().used_blocks == used + 60 * (1 + 19)
    world.run()
    assert world.counts == {"parent": PARENT_CHUNKS, "a": 2}


def test_a_stranger_with_the_parents_name_is_not_taken_for_it() -> None:
    world = World()
    parent = grown(world)
    snapshot = parent.snapshot
    world.scheduler.abort("parent")
    while world.tick():
        pass
    stranger = world.add("parent", chunks=PARENT_CHUNKS, video=True)
    world.run_to_edge(stranger, 3)
    world.add("a", snapshot=snapshot, siblings=("parent",), chunks=5)
    world.run()
    assert world.counts["a"] == 2
