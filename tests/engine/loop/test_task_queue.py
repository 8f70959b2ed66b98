"""Tasks beside the denoising: their order, who is assigned them, and what follows a loss."""

import pytest

from helios_serve.engine.loop.task_queue import (
    MAX_LONE_LOSSES,
    MAX_LOSSES,
    SUSPECT_AFTER,
    TaskQueue,
)
from helios_serve.messages import EncodeTask

Queue = TaskQueue[EncodeTask]


def task(name: str) -> EncodeTask:
    """A task that is known by the letter of its session and its number: "a0"."""
    return EncodeTask(name[0], (name,), 512)


def queue_of(*names: str) -> Queue:
    queue = Queue()
    for name in names:
        queue.put(task(name))
    return queue


def assigned(queue: Queue, *workers: str, now: float = 0.0) -> list[tuple[str, str]]:
    return [(worker, item.prompts[0]) for worker, item in queue.assign(workers, now)]


def order(queue: Queue) -> list[str]:
    """All that waits, in the order in which one worker does it."""
    done = []
    while assigned(queue, "w"):
        while queue.count("w"):
            done.append(queue.finish("w").prompts[0])
    return done


def test_sessions_take_turns_and_each_keeps_its_order() -> None:
    queue = queue_of("a0", "a1", "a2", "b0", "c0", "c1")
    assert queue.num_waiting == 6
    assert order(queue) == ["a0", "b0", "c0", "a1", "c1", "a2"]
    assert queue.num_waiting == 0


def test_an_urgent_task_is_next() -> None:
    queue = queue_of("a0", "b0")
    queue.put(task("c0"), is_urgent=True)
    assert order(queue) == ["c0", "a0", "b0"]


def test_urgent_tasks_keep_their_order() -> None:
    queue = queue_of("a0", "b0")
    for name in ("c0", "d0", "e0"):
        queue.put(task(name), is_urgent=True)
    queue.put(task("c1"))
    assert order(queue) == ["c0", "d0", "e0", "a0", "b0", "c1"]


def test_an_urgent_task_does_not_pass_earlier_ones_of_its_session() -> None:
    queue = queue_of("a0", "b0")
    for name in ("b1", "c0", "c1"):
        queue.put(task(name), is_urgent=True)
    assert order(queue) == ["c0", "a0", "b0", "c1", "b1"]


def test_a_worker_has_one_task_at_a_time() -> None:
    queue = queue_of("a0", "b0", "c0", "d0")
    assert assigned(queue, "v", "w") == [("v", "a0"), ("w", "b0")]
    assert (queue.count("v"), queue.count("w"), queue.num_waiting) == (1, 1, 2)
    assert assigned(queue, "v", "w") == []
    assert queue.finish("w") == task("b0")
    queue.put(task("u0"), is_urgent=True)
    assert assigned(queue, "v", "w") == [("w", "u0")]
    assert assigned(queue) == []


def test_of_free_workers_the_preferred_one_is_chosen() -> None:
    queue = Queue()
    for name in ("a0", "b0"):
        queue.put(task(name), preferred="w")
    assert assigned(queue, "v", "w") == [("w", "a0"), ("v", "b0")]
    queue.finish("v")
    queue.put(task("d0"), preferred="gone")
    assert assigned(queue, "v", "w") == [("v", "d0")]


def test_what_a_worker_loses_is_put_back_before_all_else() -> None:
    queue = queue_of("a0", "a1", "b0")
    assert assigned(queue, "v") == [("v", "a0")]
    assert queue.lose("v") is None
    assert queue.count("v") == 0
    assert order(queue) == ["a0", "b0", "a1"]


def test_a_task_that_many_died_with_is_all_that_the_next_one_has() -> None:
    queue = queue_of("a0", "b0")
    for number in range(SUSPECT_AFTER):
        worker = f"v{number}"
        assert assigned(queue, worker) == [(worker, "a0")]
        assert not queue.has_suspect(worker)
        queue.lose(worker)
    assert assigned(queue, "w") == [("w", "a0")]
    assert queue.has_suspect("w")
    queue.finish("w")
    assert assigned(queue, "w") == [("w", "b0")]
    assert not queue.has_suspect("w")


@pytest.mark.parametrize(("was_idle", "most"), [(True, MAX_LONE_LOSSES), (False, MAX_LOSSES)])
def test_a_task_that_too_many_died_with_is_given_up(was_idle: bool, most: int) -> None:
    """Sooner where the worker had nothing else to die of."""
    queue = queue_of("a0")
    for number in range(most):
        worker = f"v{number}"
        assert assigned(queue, worker) == [(worker, "a0")]
        lost = queue.lose(worker, was_idle=was_idle)
        assert lost == ("a" if number == most - 1 else None)
    assert assigned(queue, "w") == []
    assert queue.lose("never known") is None


def test_a_session_that_is_over_has_nothing_done_for_it_any_more() -> None:
    """What a worker has of it already comes back, or is lost for good."""
    queue = queue_of("a0", "b0", "a1", "a2")
    assigned(queue, "v")
    queue.forget("a")
    queue.forget("unknown")
    assert queue.num_waiting == 1
    queue.lose("v")
    assert order(queue) == ["b0"]


def test_a_worker_is_late_that_is_at_one_task_for_too_long() -> None:
    queue = queue_of("a0", "b0")
    assigned(queue, "w", now=10.0)
    assert not queue.is_late("w", 15.0, deadline=5.0)
    assert queue.is_late("w", 15.5, deadline=5.0)
    queue.finish("w")
    assigned(queue, "w", now=15.5)
    assert not queue.is_late("w", 20.0, deadline=5.0)
    assert queue.is_late("w", 21.0, deadline=5.0)
    queue.finish("w")
    assert not queue.is_late("w", 99.0, deadline=5.0)
    queue.put(task("c0"))
    assigned(queue, "w", now=100.0)
    assert not queue.is_late("w", 101.0, deadline=5.0)
    assert not queue.is_late("nobody", 101.0, deadline=5.0)
