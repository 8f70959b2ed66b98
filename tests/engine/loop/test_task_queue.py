"""Encode and decode tasks: their order, the worker each is assigned to, and what follows a loss."""

import pytest

from helios_serve.engine.loop.task_queue import (
    MAX_LONE_LOSSES,
    MAX_LOSSES,
    SUSPECT_AFTER,
    QueuedTask,
    TaskQueue,
)
from helios_serve.engine.loop.worker_pool import WorkerHandle
from helios_serve.messages import EncodeTask
from helios_serve.options.engine import EngineConfig
from helios_serve.options.workers import WorkerConfig

Queue = TaskQueue[EncodeTask]
Queued = QueuedTask[EncodeTask]


def task(name: str) -> EncodeTask:
    """A task that is known by the letter of its session and its number: "a0"."""
    return EncodeTask(name[0], (name,), 512)


def queue_of(*names: str) -> Queue:
    queue = Queue()
    for name in names:
        queue.put(task(name))
    return queue


def assigned(queue: Queue, *workers: str) -> list[tuple[str, str]]:
    return [(worker, queued.task.prompts[0]) for worker, queued in queue.assign(workers, 0.0)]


def take(queue: Queue) -> Queued:
    """The next task."""
    ((_, queued),) = queue.assign(("w",), 0.0)
    return queued


def order(queue: Queue) -> list[str]:
    """All that waits, in the order in which one worker does it."""
    done = []
    while queue.num_waiting:
        done.append(take(queue).task.prompts[0])
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


def test_each_free_worker_gets_one_task() -> None:
    queue = queue_of("a0", "b0", "c0", "d0")
    assert assigned(queue, "v", "w") == [("v", "a0"), ("w", "b0")]
    assert queue.num_waiting == 2
    queue.put(task("u0"), is_urgent=True)
    assert assigned(queue, "w") == [("w", "u0")]
    assert assigned(queue) == []


def test_of_free_workers_the_preferred_one_is_chosen() -> None:
    queue = Queue()
    for name in ("a0", "b0"):
        queue.put(task(name), preferred="w")
    assert assigned(queue, "v", "w") == [("w", "a0"), ("v", "b0")]
    queue.put(task("d0"), preferred="gone")
    assert assigned(queue, "v", "w") == [("v", "d0")]


def test_what_a_worker_loses_is_put_back_before_all_else() -> None:
    queue = queue_of("a0", "a1", "b0")
    assert queue.requeue(take(queue), was_alone=False) is None
    assert order(queue) == ["a0", "b0", "a1"]


def test_a_task_that_many_died_with_is_all_that_the_next_one_has() -> None:
    queue = queue_of("a0", "b0")
    for _ in range(SUSPECT_AFTER):
        queued = take(queue)
        assert not queued.is_suspect
        queue.requeue(queued, was_alone=False)
    queued = take(queue)
    assert queued.task == task("a0")
    assert queued.is_suspect
    assert not take(queue).is_suspect


@pytest.mark.parametrize(("was_alone", "most"), [(True, MAX_LONE_LOSSES), (False, MAX_LOSSES)])
def test_a_task_that_too_many_died_with_is_given_up(was_alone: bool, most: int) -> None:
    """Sooner where the worker had nothing else to die of."""
    queue = queue_of("a0")
    for number in range(most):
        lost = queue.requeue(take(queue), was_alone=was_alone)
        assert lost == ("a" if number == most - 1 else None)
    assert assigned(queue, "w") == []


def test_a_session_that_is_over_has_nothing_done_for_it_any_more() -> None:
    queue = queue_of("a0", "b0", "a1", "a2")
    queue.forget("a")
    queue.forget("unknown")
    assert ("a" in queue, "b" in queue, queue.num_waiting) == (False, True, 1)
    assert order(queue) == ["b0"]


def test_a_worker_is_late_that_is_at_one_task_for_too_long() -> None:
    worker = WorkerHandle("w", WorkerConfig(), now=0.0)
    worker.is_ready = True
    queue, config = queue_of("a0", "b0"), EngineConfig(step_deadline=5.0)
    for now in (10.0, 15.5):
        ((_, worker.encoding),) = queue.assign(("w",), now)
        assert not worker.is_late(now + 5.0, config)
        assert worker.is_late(now + 5.5, config)
    worker.encoding = None
    assert not worker.is_late(99.0, config)


def test_a_worker_is_late_that_does_not_start() -> None:
    worker, config = WorkerHandle("w", WorkerConfig(), now=1.0), EngineConfig(start_deadline=5.0)
    assert not worker.is_late(6.0, config)
    assert worker.is_late(6.5, config)
