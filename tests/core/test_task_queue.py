"""Encode and decode tasks: their order, their workers, and the loss of a worker."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest

from helios_serve.core.device import Device
from helios_serve.core.queued_task import MAX_LONE_LOSSES, MAX_LOSSES, SUSPECT_AFTER, QueuedTask
from helios_serve.core.rate import Rate
from helios_serve.core.session import Session
from helios_serve.core.task_queue import TaskQueue
from helios_serve.messages import DecodeTask, EncodeTask
from helios_serve.options.scheduling import SchedulingConfig, TenantConfig
from tests.support.scheduling import make_request, make_session

Queued = QueuedTask[EncodeTask]
CONFIG = SchedulingConfig(tenants={"heavy": TenantConfig(weight=3.0)})


class Tasks:
    """A queue, and sessions that are known by a letter; a task is named "a0" after its session."""

    def __init__(self, *names: str) -> None:
        self.queue: TaskQueue[EncodeTask] = TaskQueue("encode", CONFIG)
        self.sessions: dict[str, Session] = {}
        self.devices: dict[str, Device] = {}
        self.put(*names)

    def put(self, *names: str, preferred: str | None = None, **fields: Any) -> None:
        for name in names:
            if name[0] not in self.sessions:
                self.sessions[name[0]] = make_session(make_request(name[0], **fields))
            task = EncodeTask(name[0], (name,), 512)
            session = self.sessions[name[0]]
            due = session.clock.deadline(int(name[1:]), 1.0)
            self.queue.put(QueuedTask(task, session, 1.0, due, preferred))

    def device(self, name: str) -> Device:
        return self.devices.setdefault(name, Device(name, ("encode", "decode")))

    def assign(self, *workers: str) -> list[tuple[str, str]]:
        """Tasks for workers, which they have done before they get others."""
        given = self.queue.assign([self.device(name) for name in workers], 0.0)
        return [(worker, queued.task.prompts[0]) for worker, queued in given]

    def finish(self, *workers: str, seconds: float = 0.0) -> None:
        for name in workers:
            self.queue.finish(self.device(name), seconds, seconds)

    def take(self) -> Queued:
        """Assign the next task and lose it at once; return it."""
        device = Device("w", ("encode",))
        ((_, queued),) = self.queue.assign([device], 0.0)
        assert self.queue.lose(device, 0.0) == [queued]
        self.check()
        return queued

    def order(self) -> list[str]:
        """Return all waiting tasks, in the order in which one worker executes them."""
        done = []
        while self.queue.num_waiting:
            done.append(self.take().task.prompts[0])
        return done

    def check(self) -> None:
        self.queue.check_integrity(self.devices.values())


def test_sessions_take_turns_and_each_keeps_its_order() -> None:
    tasks = Tasks("a0", "a1", "a2", "b0", "c0", "c1")
    assert tasks.queue.num_waiting == 6
    assert tasks.order() == ["a0", "b0", "c0", "a1", "c1", "a2"]
    assert tasks.queue.num_waiting == 0


def test_tenants_take_turns_by_their_weights() -> None:
    tasks = Tasks()
    for number in range(8):
        tasks.put(f"l{number}", tenant="light")
        tasks.put(f"h{number}", tenant="heavy")
    assert "".join(name[0] for name in tasks.order()[:8]).count("h") == 6


def test_priority_goes_first_by_its_deadlines_and_others_keep_their_share() -> None:
    tasks = Tasks(*(f"a{number}" for number in range(20)))
    for number in range(20):
        tasks.put(f"p{number}", tier="priority")
        tasks.put(f"q{number}", tier="priority")
    done = tasks.order()
    assert done[0] == "p0"
    assert sum(name[0] == "a" for name in done[:20]) == 3
    assert done.index("q3") < done.index("p9")


def test_each_free_worker_gets_one_task() -> None:
    tasks = Tasks("a0", "b0", "c0", "d0")
    assert tasks.assign("v", "w") == [("v", "a0"), ("w", "b0")]
    assert (tasks.assign("v", "w"), tasks.queue.num_waiting) == ([], 2)
    tasks.check()
    tasks.finish("w")
    assert tasks.assign("v", "w") == [("w", "c0")]
    assert tasks.assign() == []
    tasks.check()


def test_of_free_workers_the_preferred_one_is_chosen() -> None:
    tasks = Tasks()
    tasks.put("a0", "b0", preferred="w")
    assert tasks.assign("v", "w") == [("w", "a0"), ("v", "b0")]
    tasks.finish("v", "w")
    tasks.put("d0", preferred="gone")
    assert tasks.assign("v", "w") == [("v", "d0")]


def decode_queue() -> tuple[TaskQueue[DecodeTask], Callable[..., None]]:
    """A queue of decode tasks, and a function that puts chunk 0, 1 and so on of a session."""
    queue: TaskQueue[DecodeTask] = TaskQueue("decode", CONFIG)
    sessions: dict[str, Session] = {}

    def put(name: str, chunk: int, preferred: str | None = None) -> None:
        session = sessions.setdefault(name, make_session(make_request(name)))
        task = DecodeTask(name, chunk, None, 33, 24, "frames")
        queue.put(QueuedTask(task, session, 1.0, session.clock.deadline(chunk, 1.0), preferred))

    return queue, put


def given_out(queue: TaskQueue[DecodeTask], devices: Iterable[Device]) -> dict[str, str]:
    """The tasks that devices get, such as "a1", by worker."""
    given = queue.assign(devices, 0.0)
    return {worker: f"{item.task.session_id}{item.task.chunk}" for worker, item in given}


def test_a_session_stays_with_the_device_that_keeps_it_and_waits_for_it() -> None:
    queue, put = decode_queue()
    v, w = (Device(name, ("decode",), keeps_sessions=True) for name in "vw")
    put("a", 0, preferred="w")
    assert given_out(queue, [v, w]) == {"w": "a0"}
    put("a", 1, preferred="v")  # it has moved meanwhile
    put("b", 0, preferred="w")
    assert given_out(queue, [v, w]) == {"v": "b0"}
    put("b", 1)
    assert given_out(queue, [v, w]) == {}
    queue.check_integrity([v, w])
    queue.finish(w, 1.0)
    assert given_out(queue, [v, w]) == {"w": "a1"}
    queue.finish(v, 1.0)
    queue.finish(w, 1.0)
    put("a", 2, preferred="v")
    assert given_out(queue, [v, w]) == {"v": "b1", "w": "a2"}
    queue.check_integrity([v, w])


def test_a_session_whose_device_is_gone_goes_to_another_one() -> None:
    queue, put = decode_queue()
    v, w = (Device(name, ("decode",), keeps_sessions=True) for name in "vw")
    put("a", 0, preferred="w")
    assert given_out(queue, [v, w]) == {"w": "a0"}
    put("a", 1, preferred="w")
    for lost in queue.lose(w, 1.0):
        assert queue.requeue(lost, was_alone=False) is None
    assert given_out(queue, [v]) == {"v": "a0"}
    queue.finish(v, 2.0)
    assert given_out(queue, [v]) == {"v": "a1"}
    queue.finish(v, 3.0)
    put("a", 2)
    assert given_out(queue, [w]) == {"w": "a2"}  # the other one drains
    queue.check_integrity([v, w])


def test_an_ended_session_is_kept_by_no_device() -> None:
    queue, put = decode_queue()
    v, w = (Device(name, ("decode",), keeps_sessions=True) for name in "vw")
    put("a", 0, preferred="w")
    given_out(queue, [v, w])
    queue.forget("a")
    put("a", 0)
    assert given_out(queue, [v, w]) == {"v": "a0"}


def test_what_a_worker_loses_is_put_back_before_the_rest_of_its_tenant() -> None:
    tasks = Tasks("a0", "a1", "b0")
    assert tasks.queue.requeue(tasks.take(), was_alone=False) is None
    tasks.check()
    assert tasks.order() == ["a0", "b0", "a1"]


def test_a_lost_task_is_not_charged_twice() -> None:
    tasks = Tasks()
    for number in range(6):
        tasks.put(f"a{number}", tenant="a")
        tasks.put(f"b{number}", tenant="b")
    for _ in range(3):
        tasks.queue.requeue(tasks.take(), was_alone=False)
    assert "".join(sorted(name[0] for name in tasks.order()[:6])) == "aaabbb"


def test_a_tenant_is_charged_for_the_time_that_its_tasks_took() -> None:
    """The tasks of one tenant are estimated like the other's, and take three times as long."""
    tasks, seconds = Tasks(), {"a": 1.0, "b": 3.0}
    for number in range(80):
        tasks.put(f"a{number}", tenant="a")
        tasks.put(f"b{number}", tenant="b")
    spent, now = {"a": 0.0, "b": 0.0}, 0.0
    for _ in range(80):
        ((_, queued),) = tasks.queue.assign([tasks.device("w")], now)
        took = seconds[queued.session.session_id]
        now += took
        tasks.queue.finish(tasks.device("w"), now, took)
        spent[queued.session.session_id] += took
    assert spent["a"] == pytest.approx(spent["b"], rel=0.15)


def test_a_task_that_many_died_with_is_all_that_the_next_one_has() -> None:
    tasks = Tasks("a0", "b0")
    for _ in range(SUSPECT_AFTER):
        queued = tasks.take()
        assert not queued.is_suspect
        tasks.queue.requeue(queued, was_alone=False)
    queued = tasks.take()
    assert queued.task.prompts == ("a0",)
    assert queued.is_suspect
    assert not tasks.take().is_suspect


@pytest.mark.parametrize(("was_alone", "most"), [(True, MAX_LONE_LOSSES), (False, MAX_LOSSES)])
def test_a_task_that_too_many_died_with_is_given_up(was_alone: bool, most: int) -> None:
    """Sooner if the task was the worker's only work."""
    tasks = Tasks("a0")
    for number in range(most):
        lost = tasks.queue.requeue(tasks.take(), was_alone=was_alone)
        assert lost == ("a" if number == most - 1 else None)
    assert tasks.assign("w") == []


def test_a_session_that_is_over_has_nothing_done_for_it_any_more() -> None:
    tasks = Tasks("a0", "b0", "a1", "a2")
    tasks.queue.forget("a")
    tasks.queue.forget("unknown")
    tasks.check()
    assert ("a" in tasks.queue, "b" in tasks.queue, tasks.queue.num_waiting) == (False, True, 1)
    assert tasks.order() == ["b0"]


def test_stages_that_run_together_share_their_device() -> None:
    device = Device("w", ("encode", "decode"))
    device.begin("encode", 0.0)
    device.begin("decode", 1.0)
    assert device.end("encode", 3.0) == pytest.approx(2 / 3)
    assert device.end("decode", 5.0) == pytest.approx(3 / 4)
    device.begin("decode", 7.0)
    assert device.end("decode", 8.0) == 1.0


def test_a_rate_forgets_the_first_measurement_and_fades_by_time() -> None:
    rate = Rate()
    rate.measure(1.0, 10.0)  # libraries are loaded
    assert rate.value == 0.1
    for _ in range(200):
        rate.measure(1.0, 0.1)
    assert rate.value == pytest.approx(10.0)
    rate.measure(1.0, 0.2)  # one of many short ones
    assert rate.value > 9.5
    for _ in range(40):
        rate.measure(20.0, 1.0)
    assert rate.value == pytest.approx(20.0, rel=0.05)


def test_a_device_that_has_handed_its_task_over_can_begin_another_one() -> None:
    tasks = Tasks("a0", "b0", "a1")
    device = tasks.device("w")
    for name in ("a0", "b0"):
        assert tasks.assign("w") == [("w", name)]
        assert tasks.assign("w") == []
        tasks.queue.hand_over(device, 1.0)
        tasks.check()
    assert tasks.assign("w") == [("w", "a1")]
    assert tasks.queue.running("b")
    ended = [tasks.queue.finish(device, 2.0).task.prompts[0] for _ in range(3)]
    assert ended == ["a0", "b0", "a1"]
    assert not tasks.queue.running("b")
    assert device.all_tasks == []
    tasks.check()


def test_a_dead_worker_loses_its_tasks_on_the_device_and_on_its_host() -> None:
    tasks = Tasks("a0", "a1", "a2", "b0")
    device = tasks.device("w")
    for _ in range(2):
        tasks.assign("w")
        tasks.queue.hand_over(device, 1.0)
    tasks.assign("w")
    lost = tasks.queue.lose(device, 2.0)
    assert [queued.task.prompts[0] for queued in lost] == ["a0", "b0", "a1"]
    assert tasks.queue.lose(device, 2.0) == []
    for queued in reversed(lost):
        assert tasks.queue.requeue(queued, was_alone=False) is None
    tasks.check()
    assert sorted(tasks.order()[:2]) == ["a0", "b0"]
