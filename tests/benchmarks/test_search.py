"""The search finds the capacity of servers whose capacity is known."""

import asyncio

import pytest

from helios_serve.benchmarks.load.search import Capacity, CapacitySearch, sessions_needed
from helios_serve.benchmarks.measure.statistics import Estimate


def find(
    capacity: float, *, start: float = 1.0, limit: float = 1000.0, is_whole: bool = False
) -> Capacity:
    """Search a server that serves all of 300 sessions well up to its capacity, and half beyond."""

    async def measure(load: float, _: int) -> tuple[int, int]:
        return (300, 300) if load <= capacity else (150, 300)

    search = CapacitySearch(measure, target=0.99, is_whole=is_whole)
    return asyncio.run(search.run(start, limit))


@pytest.mark.parametrize("capacity", [1.0, 3.7, 20.0, 90.0])
def test_the_capacity_lies_between_the_loads_that_passed_and_failed(capacity: float) -> None:
    found = find(capacity)
    assert found.passed is not None
    assert found.failed is not None
    assert found.passed <= capacity < found.failed
    assert found.failed - found.passed <= 0.1 * found.passed
    assert len(found.tried) < 15


def test_users_are_whole() -> None:
    found = find(11.5, is_whole=True)
    assert (found.passed, found.failed) == (11, 12)
    assert all(each.load == int(each.load) for each in found.tried)


def test_a_search_begins_below_its_start_if_that_fails() -> None:
    found = find(0.3)
    assert found.passed is not None
    assert 0.27 <= found.passed <= 0.3
    assert find(0.5, is_whole=True).passed is None


def test_a_search_ends_at_its_limit() -> None:
    found = find(500.0, limit=10.0)
    assert (found.passed, found.failed) == (10.0, None)


def test_an_undecided_load_is_run_again_and_then_not_carried() -> None:
    async def measure(load: float, run: int) -> tuple[int, int]:
        seen.append((load, run))
        return (100, 100) if load < 2 else (49, 50)

    seen: list[tuple[float, int]] = []
    search = CapacitySearch(measure, target=0.99, resolution=1.0)
    found = asyncio.run(search.run(1.0, 100.0))
    assert seen == [(1.0, 0), (1.0, 1), (1.0, 2), (2.0, 0), (2.0, 1), (2.0, 2)]
    assert [each.verdict for each in found.tried] == ["pass", "undecided"]
    assert (found.passed, found.failed) == (1.0, 2.0)


def test_verdicts_need_the_whole_interval() -> None:
    async def measure(load: float, run: int) -> tuple[int, int]:
        raise NotImplementedError

    search = CapacitySearch(measure, target=0.9)
    assert search.judge(Estimate(0.95, 0.91, 0.97)) == "pass"
    assert search.judge(Estimate(0.95, 0.89, 0.97)) == "undecided"
    assert search.judge(Estimate(0.85, 0.8, 0.89)) == "fail"


def test_how_many_sessions_a_target_needs() -> None:
    """n / (n + z^2) with z = 1.645."""
    assert [sessions_needed(target) for target in (0.9, 0.95, 0.99)] == [25, 52, 268]
