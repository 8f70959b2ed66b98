"""Policies of the scheduler, in virtual time on fake workers."""

import contextlib
import random
from collections import Counter

import pytest

from helios_serve.errors import CapacityError, InvalidRequestError
from helios_serve.options.scheduling import SchedulingConfig, TenantConfig
from tests.support.scheduling import RATE, SESSION_BLOCKS, World, make_request, make_session

CHUNK_COST = make_session(make_request("probe")).cost.chunk
CHUNK_SECONDS = CHUNK_COST / RATE


def test_a_session_takes_its_steps_in_order_and_leaves_nothing_behind() -> None:
    world = World()
    world.add("a", chunks=3)
    world.run()
    cursors = [step.cursor for _, step in world.done]
    assert cursors == sorted(cursors)
    assert len(cursors) == 18
    assert not world.scheduler.has_unfinished
    world.scheduler.check_integrity()
    assert world.scheduler.stats().used_blocks == 0


@pytest.mark.parametrize("tenant", ["same", "other"])
def test_a_staggered_start_does_not_wait_for_the_first_video(tenant: str) -> None:
    """At most 2.2 times the solo number of forwards precede the second session's first chunk."""
    for steps_before in range(1, 12):
        world = World()
        world.add("long", chunks=10, tenant="same")
        for _ in range(steps_before):
            world.tick()
        before = world.forwards
        world.add("short", chunks=1, tenant=tenant)
        while "short" not in world.delivered:
            world.tick()
        assert world.forwards - before <= 2.2 * 6


def test_small_stages_share_a_step_and_full_resolution_goes_alone() -> None:
    world = World()
    for index in range(8):
        world.add(f"session-{index}", tenant=f"tenant-{index}")
    together: dict[int, set[int]] = {0: set(), 1: set(), 2: set()}
    scheduler, worker = world.scheduler, world.worker("worker-0")
    while scheduler.has_unfinished:
        output = scheduler.schedule(worker)
        for step in output.scheduled_steps:
            together[step.cursor.stage].add(len(output.scheduled_steps))
        scheduler.update_from_output(worker)
    assert max(together[0]) >= 4
    assert together[2] == {1}


def test_two_tenants_share_by_their_weights() -> None:
    tenants = {"heavy": TenantConfig(weight=3.0), "light": TenantConfig(weight=1.0)}
    world = World(SchedulingConfig(tenants=tenants))
    for tenant in tenants:
        for index in range(3):
            world.add(f"{tenant}-{index}", tenant=tenant, chunks=2000)
    world.run(until=400 * CHUNK_SECONDS)
    assert world.service("heavy") / world.service("light") == pytest.approx(3, rel=0.05)


def test_a_flood_delays_another_tenant_by_one_chunk_at_most() -> None:
    world = World(num_blocks=SESSION_BLOCKS * 64 + 1)
    for index in range(40):
        world.add(f"flood-{index}", tenant="flood", chunks=50)
    world.run(until=20 * CHUNK_SECONDS)
    arrival = world.now
    world.add("guest", tenant="guest")
    while not any(step.session_id == "guest" for _, step in world.done):
        world.tick()
    first = next(time for time, step in world.done if step.session_id == "guest")
    assert first - arrival <= CHUNK_SECONDS + 2 * max_step_seconds()


def max_step_seconds() -> float:
    return max(make_session(make_request("probe")).cost.steps) / RATE


def test_flex_gets_a_quarter_of_a_default_tenants_service() -> None:
    world = World()
    world.add("default", chunks=2000, tenant="a")
    world.add("flex", chunks=2000, tenant="b", tier="flex")
    world.run(until=200 * CHUNK_SECONDS)
    assert world.service("default") / world.service("flex") == pytest.approx(4, rel=0.05)


def test_priority_meets_its_deadlines_and_others_keep_their_share() -> None:
    """Three real-time sessions on a worker that could just do so; default work takes the rest."""
    rate = CHUNK_COST / (33 / 24) * 3 / 0.84
    world = World(rate=rate)
    world.add("warm-up", tenant="t")
    world.run()
    for index in range(3):
        world.add(f"live-{index}", tier="priority", chunks=60)
    world.add("batch", chunks=2000, tenant="b")
    while len(world.delivered.get("live-0", ())) < 60:
        world.tick()
    buffer = world.scheduler.config.start_buffer
    for index in range(3):
        first, *later = world.delivered[f"live-{index}"]
        late = [time - (first + buffer + (k + 1) * 33 / 24) for k, time in enumerate(later)]
        assert max(late) <= 0
    share = world.service("batch") / (world.service("batch") + world.service("live"))
    assert share >= 0.15 * 0.95


def test_a_full_worker_refuses_more_real_time() -> None:
    rate = CHUNK_COST / (33 / 24) * 2 / 0.84
    world = World(rate=rate)
    world.add("warm-up")
    world.run()
    for index in range(2):
        world.add(f"live-{index}", tier="priority", chunks=9)
    with pytest.raises(CapacityError, match="no worker can run another video in real time") as no:
        world.add("live-2", tier="priority")
    assert no.value.code == "realtime_capacity"
    world.add("not-live")
    world.run()
    world.scheduler.check_integrity()


def test_limits_are_told_at_once_and_keep_nothing() -> None:
    tenants = {"small": TenantConfig(max_sessions=2), "idle": TenantConfig(max_queued=1)}
    world = World(SchedulingConfig(max_queued=3, tenants=tenants), workers=0)
    for index in range(2):
        world.add(f"small-{index}", tenant="small")
    with pytest.raises(CapacityError, match=r"tenant small has .*: 2 sessions \(limit 2\)") as no:
        world.add("small-2", tenant="small")
    assert no.value.code == "tenant_quota"
    world.add("idle-0", tenant="idle")
    with pytest.raises(CapacityError, match="tenant idle has .*: 1 waiting sessions"):
        world.add("idle-1", tenant="idle")
    with pytest.raises(CapacityError, match=r"queue is full: 3 sessions waiting \(limit 3\)") as no:
        world.add("other")
    assert (no.value.code, no.value.retry_after > 0) == ("queue_full", True)
    assert world.scheduler.sessions.keys() == {"small-0", "small-1", "idle-0"}
    world.add_worker("worker-0", SESSION_BLOCKS + 1)
    with pytest.raises(
        InvalidRequestError, match="got size 1280x768, .* expected at most the 1740"
    ):
        world.add("huge", size=(1280, 768))
    world.run()
    world.scheduler.check_integrity()
    assert not world.scheduler.has_unfinished


def test_an_abort_frees_everything_when_the_last_step_has_returned() -> None:
    world = World()
    world.add("a", chunks=5)
    world.add("b", chunks=2)
    for _ in range(3):
        world.tick()
    for name in ("worker-0",):
        while world.plan(name):
            pass
    assert world.scheduler.sessions["a"].in_flight > 0
    world.scheduler.abort("a")
    world.scheduler.abort("a")
    steps = len([step for _, step in world.done if step.session_id == "a"])
    world.run()
    after = len([step for _, step in world.done if step.session_id == "a"])
    assert after - steps <= 2
    assert world.scheduler.stats().used_blocks == 0
    assert len(world.delivered["b"]) == 2
    world.scheduler.check_integrity()


def test_a_paused_session_takes_no_steps_and_its_deadlines_move() -> None:
    world = World()
    session = world.add("live", tier="priority", chunks=4)
    while not world.delivered:
        world.tick()
    due = session.clock.deadline(2, 1.0)
    world.scheduler.pause("live")
    while world.queues["worker-0"]:
        world.finish_one("worker-0")
    assert not world.tick()
    world.now += 100
    world.scheduler.resume("live")
    assert session.clock.deadline(2, 1.0) >= due + 100
    world.run()
    assert len(world.delivered["live"]) == 4


def test_room_is_made_by_paused_sessions_first_and_then_by_flex_at_a_chunk_edge() -> None:
    world = World(num_blocks=2 * SESSION_BLOCKS + 1)
    flex = world.add("flex", chunks=20, tier="flex")
    idle = world.add("idle", chunks=6)
    world.run(until=2 * CHUNK_SECONDS)
    world.scheduler.pause("idle")
    world.add("first", chunks=4)
    world.run(until=world.now + 0.5 * CHUNK_SECONDS)
    assert (idle.worker_id, flex.worker_id) == (None, "worker-0")
    world.add("second", chunks=2)
    while flex.worker_id is not None:
        assert world.tick()
        world.scheduler.check_integrity()
    assert flex.edge_chunk > 0
    world.scheduler.resume("idle")
    world.run()
    counts = {name: len(times) for name, times in world.delivered.items()}
    assert counts == {"flex": 20, "idle": 6, "first": 4, "second": 2}
    done = Counter((step.session_id, step.cursor) for _, step in world.done)
    repeated = {name for (name, _), count in done.items() if count > 1}
    assert repeated <= {"idle"}, "flex left within a chunk"


def test_a_session_that_is_paused_on_its_way_out_makes_room_at_once() -> None:
    world = World(num_blocks=SESSION_BLOCKS + 1)
    flex = world.add("flex", chunks=20, tier="flex")
    world.tick()
    world.add("waiting")
    assert flex.is_leaving
    world.scheduler.pause("flex")
    world.run()
    assert len(world.delivered["waiting"]) == 1
    world.scheduler.resume("flex")
    world.run()
    assert len(world.delivered["flex"]) == 20


def test_flex_does_not_starve_under_block_pressure() -> None:
    world = World(num_blocks=SESSION_BLOCKS + 1)
    world.add("flex", chunks=5, tier="flex", tenant="f")
    for index in range(60):
        world.add(f"default-{index}", chunks=1, tenant="d")
    world.run()
    order = [step.session_id for _, step in world.done]
    assert order.index("default-59") > len(order) - 1 - order[::-1].index("flex")
    assert not world.scheduler.has_unfinished


def test_sessions_of_a_lost_worker_go_on_elsewhere_from_their_last_chunk() -> None:
    world = World(workers=2)
    for index in range(6):
        world.add(f"session-{index}", chunks=4)
    world.run(until=6 * CHUNK_SECONDS)
    world.lose_worker("worker-0")
    world.scheduler.check_integrity()
    world.run()
    assert {name: len(times) for name, times in world.delivered.items()} == {
        f"session-{index}": 4 for index in range(6)
    }


def test_a_session_that_kills_its_workers_is_found_by_running_suspects_alone() -> None:
    world = World()
    world.add("guilty", chunks=4)
    for name in ("bystander", "other"):
        world.add(name, chunks=4, size=(64, 64))
    blamed: list[str] = []
    deaths = 0
    while not blamed:
        (name,) = world.queues
        plans = world.worker(name).plans
        head = plans[0].output.scheduled_steps if plans else ()
        if any(step.session_id == "guilty" and step.cursor == (0, 1, 0) for step in head):
            deaths += 1
            blamed = world.scheduler.blame(world.worker(name), limit=3)
            world.lose_worker(name)
            world.add_worker(f"worker-{deaths}", SESSION_BLOCKS * 4)
        else:
            assert world.tick()
    assert (blamed, deaths) == (["guilty"], 4)
    world.scheduler.abort("guilty")
    world.run()
    assert {name: len(times) for name, times in world.delivered.items()} == {
        "bystander": 4,
        "other": 4,
    }


def test_a_draining_worker_takes_no_new_sessions() -> None:
    world = World(workers=2)
    world.scheduler.drain(world.worker("worker-0"))
    assert {world.add(f"session-{index}").worker_id for index in range(4)} == {"worker-1"}


@pytest.mark.parametrize("lives", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_no_block_leaks_over_many_random_lives(lives: int) -> None:
    rng = random.Random(0)
    world = World(workers=2, num_blocks=SESSION_BLOCKS * 3 + 1, text_rows=300)
    for number in range(lives):
        with contextlib.suppress(CapacityError):
            world.add(
                f"session-{number}",
                chunks=rng.randint(1, 3),
                size=rng.choice([(640, 384), (64, 64), (128, 192)]),
                tenant=rng.choice("ab"),
                tier=rng.choice(["priority", "default", "default", "flex", "flex"]),
                video=rng.random() < 0.2,
                ready=rng.random() < 0.8,
                tokens=rng.randint(1, 90),
            )
        for _ in range(rng.randint(0, 8)):
            world.tick()
        while len(world.scheduler.sessions) > 30 and world.tick():
            pass
        meddle(world, rng, number)
    for session in world.live:
        world.arrive(session.session_id)
        world.scheduler.resume(session.session_id)
    world.add_worker("last", SESSION_BLOCKS * 3 + 1, 300)
    world.run()
    world.scheduler.check_integrity()
    assert (world.scheduler.stats().used_blocks, world.scheduler.stats().used_text_rows) == (0, 0)
    assert not world.scheduler.has_unfinished
    assert not any(books.opened for books in world.books.values())
    assert len(world.delivered) > lives / 2


def meddle(world: World, rng: random.Random, number: int) -> None:
    """Apply a random operation to a session or a worker."""
    session, worker = rng.choice(world.live or [None]), rng.choice(list(world.queues))
    if session is None:
        return
    name = session.session_id
    match rng.randrange(10):
        case 0:
            world.scheduler.abort(name)
        case 1:
            world.scheduler.pause(name)
        case 2 | 3 | 4:
            world.scheduler.resume(name)
            world.arrive(name, rng.randint(1, 90))
        case 5:
            world.ask_to_switch(name, rng.choice("yz"))
        case 6 if session.edge_chunk:
            with contextlib.suppress(CapacityError):
                world.fork(session, f"{name}-a-{number}", f"{name}-b-{number}", chunks=3)
        case 7:
            world.scheduler.drain(world.worker(worker))
        case 8:
            world.lose_worker(worker)
            world.add_worker(f"worker-{number}", SESSION_BLOCKS * 3 + 1, 300)


def test_a_session_too_large_for_every_worker_blocks_nobody() -> None:
    world = World(workers=0)
    world.add("huge", size=(4096, 4096))
    world.add("small")
    world.add_worker("worker-0", SESSION_BLOCKS * 4)
    assert world.scheduler.placement.unplaceable == ["huge"]
    world.scheduler.abort("huge")
    world.run()
    assert world.delivered.keys() == {"small"}
    assert not world.scheduler.has_unfinished


def test_a_flex_session_that_waits_for_room_does_not_hold_up_real_time() -> None:
    world = World(num_blocks=SESSION_BLOCKS * 16 + 1)
    world.add("long", chunks=400)
    world.add("large", size=(2368, 1600), tier="flex")
    assert "large" in world.scheduler.waiting
    live = world.add("live", tier="priority")
    assert live.worker_id == "worker-0"


def test_one_waiting_session_evicts_from_one_worker_only() -> None:
    world = World(workers=4, num_blocks=SESSION_BLOCKS + 1)
    flex = [world.add(f"flex-{index}", chunks=9, tier="flex") for index in range(4)]
    world.run(until=0.5 * CHUNK_SECONDS)
    world.add("default")
    for _ in range(30):
        world.tick()
    assert sum(session.edge_chunk > 0 and session.worker_id is None for session in flex) <= 1
    world.run()
    assert {name: len(times) for name, times in world.delivered.items()} == {
        "default": 1,
        **{f"flex-{index}": 9 for index in range(4)},
    }


def test_a_tenant_that_was_paused_has_saved_up_nothing() -> None:
    world = World()
    for tenant in "ab":
        world.add(tenant, chunks=2000, tenant=tenant)
    world.run(until=10 * CHUNK_SECONDS)
    world.scheduler.pause("a")
    world.run(until=110 * CHUNK_SECONDS)
    world.scheduler.resume("a")
    before = world.service("a"), world.service("b")
    world.run(until=190 * CHUNK_SECONDS)
    gained = world.service("a") - before[0], world.service("b") - before[1]
    assert gained[0] / gained[1] == pytest.approx(1, rel=0.1)


def test_a_pause_before_the_first_chunk_does_not_move_later_deadlines() -> None:
    world = World()
    session = world.add("live", tier="priority", chunks=4)
    world.scheduler.pause("live")
    world.now += 100
    world.scheduler.resume("live")
    while not world.delivered:
        world.tick()
    first = world.delivered["live"][0]
    assert session.clock.deadline(1, 1.0) == pytest.approx(first + 1.0 + 33 / 24)


def test_pause_and_resume_of_a_session_that_is_over_do_nothing() -> None:
    world = World()
    world.scheduler.pause("gone")
    world.scheduler.resume("gone")
