"""Random operations on the scheduler, with its accounts checked after each of them."""

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from scheduling import World

from helios_serve.config import SchedulingConfig, TenantConfig
from helios_serve.errors import CapacityError, InvalidRequestError

SIZES = [(640, 384), (128, 64), (192, 128)]
CONFIG = SchedulingConfig(
    max_queued=6, tenants={"a": TenantConfig(weight=3, max_sessions=5), "b": TenantConfig()}
)


class SchedulerMachine(RuleBasedStateMachine):
    """Sessions of all kinds come and go while workers join, drain and die."""

    @initialize()
    def start(self) -> None:
        self.world = World(CONFIG, workers=2, num_blocks=60 * 29 * 2 + 1)
        self.names = 0

    @property
    def sessions(self) -> list[str]:
        return sorted(self.world.scheduler.sessions)

    def pick(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(self.sessions))

    @rule(
        fields=st.fixed_dictionaries(
            {
                "chunks": st.integers(1, 3),
                "size": st.sampled_from(SIZES),
                "tenant": st.sampled_from("ab"),
                "tier": st.sampled_from(["priority", "default", "flex"]),
                "video": st.booleans(),
            }
        )
    )
    def add(self, fields: dict[str, Any]) -> None:
        self.names += 1
        before = self.sessions
        try:
            self.world.add(f"session-{self.names}", **fields)
        except (CapacityError, InvalidRequestError):
            assert self.sessions == before

    @rule(count=st.integers(1, 10))
    def work(self, count: int) -> None:
        for _ in range(count):
            self.world.tick()

    @rule()
    def plan(self) -> None:
        for name in self.world.queues:
            self.world.plan(name)

    @precondition(lambda self: self.sessions)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self.world.scheduler.abort(self.pick(data))

    @precondition(lambda self: self.sessions)
    @rule(data=st.data())
    def pause(self, data: st.DataObject) -> None:
        self.world.scheduler.pause(self.pick(data))

    @precondition(lambda self: self.sessions)
    @rule(data=st.data())
    def resume(self, data: st.DataObject) -> None:
        self.world.scheduler.resume(self.pick(data))

    @precondition(lambda self: len(self.world.queues) > 1)
    @rule(data=st.data())
    def lose_worker(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.world.queues)))
        del self.world.queues[name]
        self.world.scheduler.remove_worker(name)

    @precondition(lambda self: len(self.world.queues) < 3)
    @rule()
    def gain_worker(self) -> None:
        self.names += 1
        self.world.add_worker(f"worker-{self.names}-new", 60 * 29 * 2 + 1)

    @rule(data=st.data())
    def drain(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.world.queues)))
        self.world.scheduler.drain(name)

    @invariant()
    def accounts_agree(self) -> None:
        self.world.scheduler.check_integrity()

    def teardown(self) -> None:
        """Everything that is not paused comes to its end, and then nothing is held."""
        world = self.world
        for name in self.sessions:
            world.scheduler.resume(name)
        world.add_worker("last", 60 * 29 * 2 + 1)
        world.run()
        world.scheduler.check_integrity()
        assert not world.scheduler.has_unfinished
        assert world.scheduler.stats().used_blocks == 0


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(
    max_examples=60, stateful_step_count=40, derandomize=True, deadline=None
)
