"""Tasks beside the denoising: their order, who is given them, and what follows a loss."""

import pytest

from helios_serve.engine.loop.task_queue import (
    MAX_LONE_LOSSES,
    MAX_LOSSES,
    SUSPECT_AFTER,
    TaskQueue,
)
from helios_serve.messages import EncodeTask

Board = TaskQueue[EncodeTask]


def task(name: str) -> EncodeTask:
    """A task that is known by the letter of its session and its number: "a0"."""
    return EncodeTask(name[0], (name,), 512)


def board_of(*names: str) -> Board:
    board = Board()
    for name in names:
        board.put(task(name))
    return board


def given(board: Board, *workers: str, now: float = 0.0) -> list[tuple[str, str]]:
    return [(worker, item.prompts[0]) for worker, item in board.give_out(workers, now)]


def order(board: Board) -> list[str]:
    """All that waits, in the order in which one worker does it."""
    done = []
    while given(board, "w"):
        while board.count("w"):
            done.append(board.finish("w").prompts[0])
    return done


def test_sessions_take_turns_and_each_keeps_its_order() -> None:
    board = board_of("a0", "a1", "a2", "b0", "c0", "c1")
    assert board.num_waiting == 6
    assert order(board) == ["a0", "b0", "c0", "a1", "c1", "a2"]
    assert board.num_waiting == 0


def test_an_urgent_task_is_next() -> None:
    board = board_of("a0", "b0")
    board.put(task("c0"), is_urgent=True)
    assert order(board) == ["c0", "a0", "b0"]


def test_urgent_tasks_keep_their_order() -> None:
    board = board_of("a0", "b0")
    for name in ("c0", "d0", "e0"):
        board.put(task(name), is_urgent=True)
    board.put(task("c1"))
    assert order(board) == ["c0", "d0", "e0", "a0", "b0", "c1"]


def test_an_urgent_task_does_not_pass_earlier_ones_of_its_session() -> None:
    board = board_of("a0", "b0")
    for name in ("b1", "c0", "c1"):
        board.put(task(name), is_urgent=True)
    assert order(board) == ["c0", "a0", "b0", "c1", "b1"]


def test_a_worker_has_one_task_at_a_time() -> None:
    board = board_of("a0", "b0", "c0", "d0")
    assert given(board, "v", "w") == [("v", "a0"), ("w", "b0")]
    assert (board.count("v"), board.count("w"), board.num_waiting) == (1, 1, 2)
    assert given(board, "v", "w") == []
    assert board.finish("w") == task("b0")
    board.put(task("u0"), is_urgent=True)
    assert given(board, "v", "w") == [("w", "u0")]
    assert given(board) == []


def test_of_free_workers_the_preferred_one_is_chosen() -> None:
    board = Board()
    for name in ("a0", "b0"):
        board.put(task(name), preferred="w")
    assert given(board, "v", "w") == [("w", "a0"), ("v", "b0")]
    board.finish("v")
    board.put(task("d0"), preferred="gone")
    assert given(board, "v", "w") == [("v", "d0")]


def test_what_a_worker_loses_is_put_back_before_all_else() -> None:
    board = board_of("a0", "a1", "b0")
    assert given(board, "v") == [("v", "a0")]
    assert board.lose("v") is None
    assert board.count("v") == 0
    assert order(board) == ["a0", "b0", "a1"]


def test_a_task_that_many_died_with_is_all_that_the_next_one_has() -> None:
    board = board_of("a0", "b0")
    for number in range(SUSPECT_AFTER):
        worker = f"v{number}"
        assert given(board, worker) == [(worker, "a0")]
        assert not board.has_suspect(worker)
        board.lose(worker)
    assert given(board, "w") == [("w", "a0")]
    assert board.has_suspect("w")
    board.finish("w")
    assert given(board, "w") == [("w", "b0")]
    assert not board.has_suspect("w")


@pytest.mark.parametrize(("was_idle", "most"), [(True, MAX_LONE_LOSSES), (False, MAX_LOSSES)])
def test_a_task_that_too_many_died_with_is_given_up(was_idle: bool, most: int) -> None:
    """Sooner where the worker had nothing else to die of."""
    board = board_of("a0")
    for number in range(most):
        worker = f"v{number}"
        assert given(board, worker) == [(worker, "a0")]
        lost = board.lose(worker, was_idle=was_idle)
        assert lost == ("a" if number == most - 1 else None)
    assert given(board, "w") == []
    assert board.lose("never known") is None


def test_a_session_that_is_over_has_nothing_done_for_it_any_more() -> None:
    """What a worker has of it already comes back, or is lost for good."""
    board = board_of("a0", "b0", "a1", "a2")
    given(board, "v")
    board.forget("a")
    board.forget("unknown")
    assert board.num_waiting == 1
    board.lose("v")
    assert order(board) == ["b0"]


def test_a_worker_is_late_that_is_at_one_task_for_too_long() -> None:
    board = board_of("a0", "b0")
    given(board, "w", now=10.0)
    assert not board.is_late("w", 15.0, deadline=5.0)
    assert board.is_late("w", 15.5, deadline=5.0)
    board.finish("w")
    given(board, "w", now=15.5)
    assert not board.is_late("w", 20.0, deadline=5.0)
    assert board.is_late("w", 21.0, deadline=5.0)
    board.finish("w")
    assert not board.is_late("w", 99.0, deadline=5.0)
    board.put(task("c0"))
    given(board, "w", now=100.0)
    assert not board.is_late("w", 101.0, deadline=5.0)
    assert not board.is_late("nobody", 101.0, deadline=5.0)
