"""When workers are looked at: compared with a list that is searched as a whole."""

import math

from hypothesis import given
from hypothesis import strategies as st

from helios_serve.core.plan_pace import Timetable

WORKERS = ("c", "a", "b")


def with_workers() -> Timetable:
    timetable = Timetable()
    for worker in WORKERS:
        timetable.add(worker)
    return timetable


def test_workers_that_changed_are_due_in_the_order_in_which_they_were_added() -> None:
    timetable = with_workers()
    for worker in ("b", "a", "c", "a"):
        timetable.touch(worker)
    assert timetable.due(0.0) == ["c", "a", "b"]
    assert timetable.due(0.0) == ["c", "a", "b"]  # until something else is set
    timetable.set("a", math.inf, 0.0)
    timetable.set("b", 1.0, 0.0)
    assert timetable.due(0.5) == ["c"]
    assert timetable.next_at == 1.0
    assert timetable.due(1.0) == ["c", "b"]


def test_a_time_that_was_replaced_does_not_count() -> None:
    timetable = with_workers()
    timetable.set("a", 1.0, 0.0)
    timetable.set("a", 2.0, 0.0)
    assert timetable.next_at == 2.0
    timetable.set("a", 1.0, 0.0)
    timetable.set("b", 3.0, 0.0)
    timetable.remove("a")
    assert "a" not in timetable
    assert (timetable.next_at, timetable.due(2.0)) == (3.0, [])


times = st.sampled_from([0.0, 1.0, 2.0, 3.0, math.inf])
operations = st.one_of(
    st.tuples(st.just("touch"), st.sampled_from(WORKERS), st.just(0.0)),
    st.tuples(st.just("set"), st.sampled_from(WORKERS), times),
    st.tuples(st.just("pass"), st.sampled_from(WORKERS), st.just(0.5)),
)


@given(st.lists(operations, max_size=40))
def test_it_answers_as_a_list_of_all_workers_would(steps: list[tuple[str, str, float]]) -> None:
    timetable, now = with_workers(), 0.0
    changed: set[str] = set()
    later = dict.fromkeys(WORKERS, math.inf)
    for kind, worker, value in steps:
        match kind:
            case "touch":
                timetable.touch(worker)
                changed.add(worker)
            case "set":
                timetable.set(worker, value, now)
                changed.discard(worker)
                later[worker] = value
            case "pass":
                now += value
        for name, at in later.items():
            if at <= now:
                changed.add(name)
                later[name] = math.inf
        assert timetable.due(now) == [name for name in WORKERS if name in changed]
        assert timetable.next_at == min(later.values())
        for name in WORKERS:
            assert (name in timetable) == (name in changed or later[name] < math.inf)
