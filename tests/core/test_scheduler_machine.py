"""Random operations on the scheduler, with the accounts of all stages checked after each."""

import contextlib
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from helios_serve.core.cost import encode_cost
from helios_serve.core.device import Stage
from helios_serve.core.session import Session
from helios_serve.errors import CapacityError, InvalidRequestError
from helios_serve.options.scheduling import SchedulingConfig, TenantConfig
from tests.support.scheduling import RATE, SESSION_BLOCKS, World, make_request, make_session
from tests.support.tries import tries

SIZES = [(640, 384), (128, 64), (192, 128)]
BLOCKS = SESSION_BLOCKS * 2 + 1
TEXT_ROWS = 250
CONFIG = SchedulingConfig(
    max_queued=6, tenants={"a": TenantConfig(weight=3, max_sessions=5), "b": TenantConfig()}
)
PROBE = make_session(make_request("probe")).cost
CHUNK_SECONDS = PROBE.chunk / RATE
DECODE_RATE = PROBE.decode / CHUNK_SECONDS
ENCODE_RATE = encode_cost(1) / CHUNK_SECONDS
ROLES: tuple[tuple[Stage, ...], ...] = (
    ("encode", "denoise", "decode"),
    ("denoise", "decode"),
    ("denoise",),
    ("encode", "decode"),
    ("decode",),
)
tenants = st.sampled_from("ab")
tiers = st.sampled_from(["priority", "default", "flex"])
tokens = st.sampled_from([5, 60, 110])


class SchedulerMachine(RuleBasedStateMachine):
    """Adds, forks, switches and ends sessions while workers of all roles join, drain and die."""

    @initialize(roles=st.lists(st.sampled_from(ROLES), min_size=1, max_size=3))
    def start(self, roles: list[tuple[Stage, ...]]) -> None:
        self.world = World(CONFIG, workers=0, encode_rate=ENCODE_RATE, decode_rate=DECODE_RATE)
        self.names = 0
        for each in roles:
            self.gain_worker(each)

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

    @rule()
    def give_out_tasks(self) -> None:
        self.world.assign_tasks()

    @precondition(lambda self: self.world.open)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        """A session, or one that waits for nothing but its decoder."""
        self.world.abort(data.draw(st.sampled_from(sorted(self.world.open))))

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

    @precondition(lambda self: len(self.world.jobs) > 1)
    @rule(data=st.data())
    def lose_worker(self, data: st.DataObject) -> None:
        self.world.lose_worker(data.draw(st.sampled_from(sorted(self.world.jobs))))

    @property
    def at_tasks(self) -> list[str]:
        devices = self.world.scheduler.devices
        return sorted(name for name, device in devices.items() if device.tasks)

    @precondition(lambda self: self.at_tasks)
    @rule(data=st.data())
    def lose_a_worker_with_a_task(self, data: st.DataObject) -> None:
        self.world.lose_worker(data.draw(st.sampled_from(self.at_tasks)))

    @precondition(lambda self: len(self.world.jobs) < 4)
    @rule(roles=st.sampled_from(ROLES))
    def gain_worker(self, roles: tuple[Stage, ...]) -> None:
        self.world.add_worker(self.new_name("worker"), BLOCKS, TEXT_ROWS, roles=roles)

    @precondition(lambda self: self.world.jobs)
    @rule(data=st.data())
    def drain(self, data: st.DataObject) -> None:
        self.world.drain(data.draw(st.sampled_from(sorted(self.world.jobs))))

    @rule()
    def remove_drained(self) -> None:
        for name, device in list(self.world.scheduler.devices.items()):
            worker = self.world.scheduler.workers.get(name)
            is_empty = not device.tasks and (worker is None or worker.is_empty)
            if device.is_draining and is_empty:
                assert worker is None or not self.world.books[name].opened
                self.world.lose_worker(name)

    @invariant()
    def accounts_agree(self) -> None:
        self.world.scheduler.check_integrity()

    @invariant()
    def nobody_begins_without_inputs(self) -> None:
        assert all(item.is_ready for item in self.live if item.worker_id is not None)

    @invariant()
    def nothing_is_decoded_for_nobody(self) -> None:
        waiting = [name for name in self.world.delivered if name in self.world.scheduler.decoding]
        assert self.world.open.keys() >= set(waiting)

    def teardown(self) -> None:
        """Run everything to its end. Then nothing is held, and drained workers are empty."""
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
        assert not world.open, "a chunk was never delivered"
        tasks = world.scheduler.encoding, world.scheduler.decoding
        assert [queue.num_waiting for queue in tasks] == [0, 0]
        assert not any(device.tasks for device in world.scheduler.devices.values())
        assert world.scheduler.stats().used_blocks == 0
        assert all(world.worker(name).is_empty for name in world.queues)
        assert not any(books.opened for books in world.books.values())


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(
    max_examples=tries(100, 2000), stateful_step_count=50, derandomize=True, deadline=None
)
