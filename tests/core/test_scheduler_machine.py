"""Random operations on the scheduler, with its accounts checked after each of them."""

import contextlib
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from helios_serve.core.session import Session
from helios_serve.errors import CapacityError, InvalidRequestError
from helios_serve.options.scheduling import SchedulingConfig, TenantConfig
from tests.support.scheduling import SESSION_BLOCKS, World
from tests.support.tries import tries

SIZES = [(640, 384), (128, 64), (192, 128)]
BLOCKS = SESSION_BLOCKS * 2 + 1
TEXT_ROWS = 250
CONFIG = SchedulingConfig(
    max_queued=6, tenants={"a": TenantConfig(weight=3, max_sessions=5), "b": TenantConfig()}
)
tenants = st.sampled_from("ab")
tiers = st.sampled_from(["priority", "default", "flex"])
tokens = st.sampled_from([5, 60, 110])


class SchedulerMachine(RuleBasedStateMachine):
    """Sessions of all kinds come, fork, turn and go while workers join, drain and die."""

    @initialize()
    def start(self) -> None:
        self.world = World(CONFIG, workers=0)
        self.names = 0
        for _ in range(2):
            self.gain_worker()

    @property
    def sessions(self) -> list[str]:
        return sorted(self.world.scheduler.sessions)

    @property
    def live(self) -> list[Session]:
        return sorted(self.world.live, key=lambda session: session.session_id)

    @property
    def parents(self) -> list[Session]:
        return [session for session in self.live if session.edge_chunk]

    def new_name(self, kind: str) -> str:
        self.names += 1
        return f"{kind}-{self.names}"

    def pick(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(self.sessions))

    @rule(
        fields=st.fixed_dictionaries(
            {
                "chunks": st.integers(1, 3),
                "size": st.sampled_from(SIZES),
                "tenant": tenants,
                "tier": tiers,
                "video": st.booleans(),
                "ready": st.booleans(),
                "tokens": tokens,
            }
        )
    )
    def add(self, fields: dict[str, Any]) -> None:
        before = self.sessions
        try:
            self.world.add(self.new_name("session"), **fields)
        except (CapacityError, InvalidRequestError):
            assert self.sessions == before

    @precondition(lambda self: self.live)
    @rule(data=st.data(), tokens=tokens)
    def arrive(self, data: st.DataObject, tokens: int) -> None:
        session = data.draw(st.sampled_from(self.live))
        for switch in self.world.arrive(session.session_id, tokens):
            assert switch is None or (switch.chunk, 0, 0) >= session.cursor

    @precondition(lambda self: self.live)
    @rule(data=st.data(), prompt=st.sampled_from("yz"))
    def ask_to_switch(self, data: st.DataObject, prompt: str) -> None:
        session = data.draw(st.sampled_from(self.live))
        self.world.ask_to_switch(session.session_id, prompt)

    @precondition(lambda self: self.parents)
    @rule(data=st.data(), count=st.integers(1, 3), tenant=tenants, tier=tiers)
    def fork(self, data: st.DataObject, count: int, tenant: str, tier: str) -> None:
        parent = data.draw(st.sampled_from(self.parents))
        names = [self.new_name("child") for _ in range(count)]
        with contextlib.suppress(CapacityError):
            self.world.fork(parent, *names, chunks=3, tenant=tenant, tier=tier)

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
        self.world.abort(self.pick(data))

    @precondition(lambda self: self.sessions)
    @rule(data=st.data())
    def pause(self, data: st.DataObject) -> None:
        self.world.scheduler.pause(self.pick(data))

    @precondition(lambda self: self.sessions)
    @rule(data=st.data())
    def resume(self, data: st.DataObject) -> None:
        self.world.scheduler.resume(self.pick(data))

    @precondition(lambda self: self.sessions)
    @rule(data=st.data(), limit=st.integers(1, 4))
    def allow_chunks(self, data: st.DataObject, limit: int) -> None:
        self.world.scheduler.allow_chunks(self.pick(data), limit)

    @precondition(lambda self: len(self.world.queues) > 1)
    @rule(data=st.data())
    def lose_worker(self, data: st.DataObject) -> None:
        self.world.lose_worker(data.draw(st.sampled_from(sorted(self.world.queues))))

    @precondition(lambda self: len(self.world.queues) < 3)
    @rule()
    def gain_worker(self) -> None:
        self.world.add_worker(self.new_name("worker"), BLOCKS, TEXT_ROWS)

    @precondition(lambda self: self.world.queues)
    @rule(data=st.data())
    def drain(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.world.queues)))
        self.world.scheduler.drain(self.world.worker(name))

    @rule()
    def remove_drained(self) -> None:
        for name, worker in list(self.world.scheduler.workers.items()):
            if worker.is_draining and worker.is_empty:
                assert not self.world.books[name].opened
                self.world.lose_worker(name)

    @invariant()
    def accounts_agree(self) -> None:
        self.world.scheduler.check_integrity()

    @invariant()
    def nobody_begins_without_inputs(self) -> None:
        assert all(item.is_ready for item in self.live if item.worker_id is not None)

    def teardown(self) -> None:
        """Everything comes to its end, and then nothing is held; drained workers are empty."""
        world = self.world
        for session in self.live:
            world.arrive(session.session_id)
        for name in self.sessions:
            world.scheduler.resume(name)
            world.scheduler.allow_chunks(name, 9)
        world.add_worker("last", BLOCKS, TEXT_ROWS)
        world.run()
        world.scheduler.check_integrity()
        assert not world.scheduler.has_unfinished
        assert world.scheduler.stats().used_blocks == 0
        assert all(world.worker(name).is_empty for name in world.queues)
        assert not any(books.opened for books in world.books.values())


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(
    max_examples=tries(100, 2000), stateful_step_count=50, derandomize=True, deadline=None
)
