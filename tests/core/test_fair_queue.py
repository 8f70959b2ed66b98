"""Fair queueing by itself: shares, returns and removals."""

import random
from collections import Counter

import pytest

from helios_serve.core.fair_queue import FairQueue


def serve(queue: FairQueue[str], times: int, cost: float = 1.0) -> Counter[str]:
    """Pop, charge and push again; counts of service."""
    served: Counter[str] = Counter()
    for _ in range(times):
        item = queue.pop()
        assert item is not None
        served[item] += 1
        queue.charge(item, cost)
        queue.push(item, started=False)
    return served


def queue_of(**weights: float) -> FairQueue[str]:
    queue: FairQueue[str] = FairQueue()
    for name, weight in weights.items():
        queue.join(name, name, weight)
        queue.push(name, started=False)
    return queue


def test_service_is_shared_by_weight() -> None:
    served = serve(queue_of(a=3, b=1), 4000)
    assert served["a"] == pytest.approx(3000, abs=2)


def test_items_of_one_flow_take_turns() -> None:
    queue: FairQueue[str] = FairQueue()
    for name in "abc":
        queue.join(name, "tenant", 1.0)
        queue.push(name, started=False)
    assert set(serve(queue, 300).values()) == {100}


def test_a_flow_that_comes_back_has_saved_up_nothing() -> None:
    queue = queue_of(a=1, b=1)
    queue.leave("b")
    serve(queue, 1000)
    queue.join("b", "b", 1.0)
    queue.push("b", started=False)
    served = serve(queue, 100)
    assert served["b"] == pytest.approx(50, abs=1)


def test_a_flow_that_leaves_and_returns_does_not_lose_its_debt() -> None:
    queue = queue_of(a=1, b=1)
    queue.charge("a", 50)
    queue.leave("a")
    queue.join("a", "a", 1.0)
    queue.push("a", started=False)
    assert serve(queue, 50) == {"b": 50}


def test_a_started_item_goes_first_until_its_flow_leads_too_far() -> None:
    queue = queue_of(a=1, b=1)
    queue.withdraw("a")
    queue.push("a", started=True)
    queue.charge("a", 5)
    assert queue.pop(lambda _: 5.0) == "a"
    queue.push("a", started=True)
    queue.charge("a", 1)
    assert queue.pop(lambda _: 5.0) == "b"


def test_an_item_put_back_in_front_keeps_its_turn() -> None:
    queue: FairQueue[str] = FairQueue()
    for name in "ab":
        queue.join(name, "tenant", 1.0)
        queue.push(name, started=False)
    assert queue.pop() == "a"
    queue.push("a", started=False, front=True)
    assert queue.pop() == "a"


def test_removed_items_are_never_served() -> None:
    rng = random.Random(0)
    queue: FairQueue[int] = FairQueue()
    present: set[int] = set()
    for number in range(3000):
        queue.join(number, number % 7, 1.0 + number % 3)
        queue.push(number, started=number % 2 == 0)
        present.add(number)
        if rng.random() < 0.4:
            gone = rng.choice(sorted(present))
            queue.leave(gone)
            present.remove(gone)
        if rng.random() < 0.3:
            item = queue.pop()
            assert item in present
            queue.leave(item)
            present.remove(item)
        assert len(queue) == len(present)
    while (item := queue.pop()) is not None:
        present.remove(item)
    assert not present
