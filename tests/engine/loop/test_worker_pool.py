"""Workers of several roles that come, go and speak in any order: a test speaks for them."""

import pytest

from helios_serve.core.queued_task import QueuedTask
from helios_serve.core.task_queue import TaskQueue
from helios_serve.engine.loop.engine_core import EngineCore
from helios_serve.engine.loop.events import EngineEvent, PromptSwitched
from helios_serve.engine.loop.worker_pool import WorkerHandle
from helios_serve.errors import InvalidRequestError
from helios_serve.messages import (
    ChunkDecoded,
    ChunkResult,
    DecodeTask,
    EncodeTask,
    InputsEncoded,
    RunnerOutput,
    SchedulerOutput,
    StepsDone,
    TensorData,
    WorkerCommand,
    WorkerDied,
    WorkerEvent,
    WorkerReady,
)
from helios_serve.model_executor.executor.abstract import Received
from helios_serve.options.engine import EngineConfig
from helios_serve.options.scheduling import SchedulingConfig
from helios_serve.options.workers import Role, WorkerConfig
from tests.support.scheduling import CONFIG, Past, make_request, make_session, read


class Puppets:
    """Workers that do nothing: what they are told is kept, and what they say is put in `events`."""

    def __init__(self) -> None:
        self.told: dict[str, list[WorkerCommand]] = {}
        self.events: list[Received] = []
        self.stopped: list[str] = []

    def start_worker(self, config: WorkerConfig) -> str:
        name = f"{'+'.join(config.roles)}-{len(self.told)}"
        self.told[name] = []
        return name

    def submit(self, worker_id: str, command: WorkerCommand) -> None:
        self.told[worker_id].append(command)

    def poll(self, timeout: float) -> list[Received]:  # noqa: ARG002
        events, self.events = self.events, []
        return events

    def wake(self) -> None:
        raise AssertionError("nobody waits here")

    def where(self, worker_id: str) -> str:
        return worker_id

    def kill_worker(self, worker_id: str) -> None:
        raise AssertionError(f"{worker_id} is not late")

    def stop_worker(self, worker_id: str) -> None:
        self.stopped.append(worker_id)

    def shutdown(self) -> None:
        pass


class Play:
    """An engine with workers of some roles."""

    def __init__(self, *roles: tuple[Role, ...]) -> None:
        self.puppets = Puppets()
        workers = tuple(WorkerConfig(roles=role) for role in roles)
        self.engine = EngineCore(self.puppets, CONFIG, EngineConfig(workers=workers))
        self.names = list(self.puppets.told)

    def say(self, worker: int, event: WorkerEvent) -> list[EngineEvent]:
        self.puppets.events.append(Received(self.names[worker], event))
        return self.engine.step(0)

    def ready(self, *workers: int) -> None:
        for worker in workers:
            self.say(worker, WorkerReady(4000, 1000))

    def told(self, worker: int) -> list[WorkerCommand]:
        """What the worker was told since this was last asked."""
        self.engine.step(0)
        commands = self.puppets.told[self.names[worker]]
        self.puppets.told[self.names[worker]] = []
        return commands


def encoded(task: WorkerCommand) -> InputsEncoded:
    assert isinstance(task, EncodeTask)
    return InputsEncoded(task.session_id, tuple(map(read, task.prompts)))


def test_a_draining_worker_ends_when_it_has_done_its_tasks_and_is_given_no_more() -> None:
    play = Play(("encode", "decode"), ("encode", "decode"), ("denoise",))
    play.ready(0, 1, 2)
    play.engine.add_request(make_request("a"))
    (task,) = play.told(0)
    play.engine.worker_pool.drain(play.names[0])
    for name in ("b", "c", "d"):
        play.engine.add_request(make_request(name))
    assert (len(play.told(0)), len(play.told(1))) == (0, 1)
    assert not play.puppets.stopped
    play.say(0, encoded(task))
    assert play.puppets.stopped == [play.names[0]]
    assert not play.told(0)


def test_what_a_dead_worker_was_to_encode_another_one_does() -> None:
    play = Play(("encode", "decode"), ("encode", "decode"), ("denoise",))
    play.ready(0, 1)
    for name in ("a", "b"):
        play.engine.add_request(make_request(name))
    (lost,), (other,) = play.told(0), play.told(1)
    play.say(0, WorkerDied("an accident"))
    assert play.told(1) == []
    play.say(1, encoded(other))
    assert play.told(1) == [lost]
    play.say(0, encoded(lost))
    assert not play.engine.scheduler.sessions["a"].is_ready, "the dead one was heard"
    assert play.names[0] not in play.engine.worker_pool.workers
    assert len(play.engine.worker_pool.workers) == 3


def test_nobody_does_a_dead_workers_task_for_a_request_that_has_ended() -> None:
    play = Play(("encode", "decode"), ("encode", "decode"), ("denoise",))
    play.ready(0, 1)
    for name in ("a", "b"):
        play.engine.add_request(make_request(name))
    _, (other,) = play.told(0), play.told(1)
    play.engine.abort("a")
    play.say(0, WorkerDied("an accident"))
    play.say(1, encoded(other))
    assert play.told(1) == []
    play.engine.add_request(make_request("a"))


def test_a_worker_that_was_drained_while_it_started_is_given_no_sessions() -> None:
    play = Play(("encode", "decode"), ("denoise",), ("denoise",))
    play.ready(0)
    session = play.engine.add_request(make_request("a"))
    (task,) = play.told(0)
    play.say(0, encoded(task))
    play.engine.worker_pool.drain(play.names[1])
    play.ready(1)
    assert session.worker_id is None
    assert play.names[1] in play.puppets.stopped
    play.ready(2)
    assert session.worker_id == play.names[2]


def test_a_switch_that_cannot_be_read_is_dropped_even_before_its_video_begins() -> None:
    play = Play(("encode",), ("encode",), ("denoise", "decode"))
    play.ready(0, 1, 2)
    session = play.engine.add_request(make_request("a", chunks=3))
    play.engine.switch_prompt("a", "bad")
    (task,), _ = play.told(0), play.told(1)
    events = play.say(1, InputsEncoded("a", error="a bad prompt"))
    assert events == [PromptSwitched("a", "bad", None, session.request)]
    play.say(0, encoded(task))
    assert session.worker_id == play.names[2]


@pytest.mark.parametrize("what", ["encoding", "decoding"])
def test_an_id_is_in_use_as_long_as_a_worker_is_at_a_task_with_it(what: str) -> None:
    play = Play(("encode",), ("decode",), ("denoise",))
    play.ready(0, 1, 2)
    play.engine.add_request(make_request("a"))
    (task,) = play.told(0)
    if what == "decoding":
        play.say(0, encoded(task))
        session = play.engine.scheduler.sessions["a"]
        snapshot = Past("", ()).then("a", 0).snapshot(session, 1)
        result = ChunkResult("a", 0, TensorData(b"", (1, 16, 9, 48, 80), "float32"), snapshot)
        for step in range(6):
            plans = [plan for plan in play.told(2) if isinstance(plan, SchedulerOutput)]
            assert plans or step
            play.say(2, StepsDone(RunnerOutput((result,) if step == 5 else ()), 1.0))
        (task,) = play.told(1)
        assert isinstance(task, DecodeTask)
    play.engine.abort("a")
    with pytest.raises(InvalidRequestError, match="got request id 'a', which is in use"):
        play.engine.add_request(make_request("a"))
    if what == "decoding":
        play.say(1, ChunkDecoded("a", 0))
    else:
        play.say(0, encoded(task))
    play.engine.add_request(make_request("a"))


def test_a_worker_is_late_that_is_at_one_task_for_too_long() -> None:
    worker = WorkerHandle("w", WorkerConfig(), now=0.0)
    worker.is_ready = True
    queue: TaskQueue[EncodeTask] = TaskQueue("encode", SchedulingConfig())
    config = EngineConfig(step_deadline=5.0)
    for name, now in (("a", 10.0), ("b", 15.5)):
        session = make_session(make_request(name))
        queue.put(QueuedTask(EncodeTask(name, ("x",), 512), session, 1.0, 0.0))
        assert len(list(queue.assign([worker.device], now))) == 1
        assert not worker.is_late(now + 5.0, config)
        assert worker.is_late(now + 5.5, config)
        queue.finish(worker.device, now + 5.5)
    assert not worker.is_late(99.0, config)


def test_a_worker_is_late_that_does_not_start() -> None:
    worker, config = WorkerHandle("w", WorkerConfig(), now=1.0), EngineConfig(start_deadline=5.0)
    assert not worker.is_late(6.0, config)
    assert worker.is_late(6.5, config)
