"""Shares, tiers and deadlines where encoding, denoising or decoding is the bottleneck."""

from collections.abc import Callable

import pytest

from helios_serve.core.cost import encode_cost
from helios_serve.core.device import Stage
from helios_serve.core.plan_pace import PLAN_LEAD
from helios_serve.errors import CapacityError
from helios_serve.options.scheduling import SchedulingConfig, TenantConfig
from tests.support.scheduling import RATE, SESSION_BLOCKS, World, make_request, make_session

PROBE = make_session(make_request("probe")).cost
CHUNK_SECONDS = PROBE.chunk / RATE
STEP_SECONDS = max(PROBE.steps) / RATE
SLOW = PROBE.decode / (4 * CHUNK_SECONDS)
"""Pixels a second at which decoding a chunk takes four times as long as denoising it."""
FAST = PROBE.decode / (CHUNK_SECONDS / 4)
PROMPTS = encode_cost(1) / (CHUNK_SECONDS / 100)
"""Pixels a second at which encoding takes negligible time."""

APART: tuple[tuple[Stage, ...], ...] = (("encode",), ("denoise",), ("decode",))
SHARED: tuple[tuple[Stage, ...], ...] = (("encode", "denoise", "decode"),)
LAYOUTS = pytest.mark.parametrize("layout", [APART, SHARED], ids=["apart", "shared"])
BOTTLENECKS = pytest.mark.parametrize("decode_rate", [SLOW, FAST], ids=["decode", "denoise"])


def make_world(
    layout: tuple[tuple[Stage, ...], ...],
    decode_rate: float = SLOW,
    *,
    encode_rate: float = PROMPTS,
    config: SchedulingConfig | None = None,
    rate: float = RATE,
) -> World:
    world = World(config, workers=0, decode_rate=decode_rate, encode_rate=encode_rate, rate=rate)
    for index, roles in enumerate(layout):
        world.add_worker(f"worker-{index}", SESSION_BLOCKS * 256 + 1, roles=roles)
    return world


def longest_gap(times: list[float]) -> float:
    return max(after - before for before, after in zip(times, times[1:], strict=False))


@LAYOUTS
@BOTTLENECKS
def test_a_priority_session_hardly_notices_six_others(
    layout: tuple[tuple[Stage, ...], ...], decode_rate: float
) -> None:
    gaps = []
    for others in (0, 6):
        world = make_world(layout, decode_rate)
        for index in range(others):
            world.add(f"other-{index}", chunks=200, tenant="other")
        world.run(until=40 * CHUNK_SECONDS)
        world.add("live", tier="priority", chunks=20)
        while len(world.delivered.get("live", ())) < 20:
            assert world.tick()
        world.scheduler.check_integrity()
        gaps.append(longest_gap(world.delivered["live"]))
    assert gaps[1] <= 2.5 * gaps[0]


@LAYOUTS
@BOTTLENECKS
@pytest.mark.parametrize("sessions", [1, 3, 12])
def test_delivered_chunks_are_shared_by_weight(
    layout: tuple[tuple[Stage, ...], ...], decode_rate: float, sessions: int
) -> None:
    config = SchedulingConfig(
        tenants={"heavy": TenantConfig(weight=3.0), "light": TenantConfig(weight=1.0)}
    )
    world = make_world(layout, decode_rate, config=config)
    for tenant in ("heavy", "light"):
        for index in range(sessions):
            world.add(f"{tenant}-{index}", tenant=tenant, chunks=2000)
    world.run(until=600 * CHUNK_SECONDS)
    world.scheduler.check_integrity()
    assert delivered(world, "heavy") / delivered(world, "light") == pytest.approx(3, rel=0.1)


def delivered(world: World, prefix: str) -> int:
    return sum(number for name, number in world.counts.items() if name.startswith(prefix))


@LAYOUTS
def test_short_videos_are_shared_by_weight_where_encoding_is_the_bottleneck(
    layout: tuple[tuple[Stage, ...], ...],
) -> None:
    config = SchedulingConfig(tenants={"heavy": TenantConfig(weight=3.0)})
    slow = encode_cost(1) / (8 * CHUNK_SECONDS)
    world = make_world(layout, FAST, encode_rate=slow, config=config)
    for index in range(200):
        for tenant in ("heavy", "light"):
            world.add(f"{tenant}-{index}", tenant=tenant)
    world.run(until=1000 * CHUNK_SECONDS)
    world.scheduler.check_integrity()
    assert delivered(world, "heavy") / delivered(world, "light") == pytest.approx(3, rel=0.1)


@LAYOUTS
@BOTTLENECKS
@pytest.mark.parametrize("chunks", [1, 500])
def test_a_flood_delays_another_tenants_first_chunk_by_a_decode_and_a_step(
    layout: tuple[tuple[Stage, ...], ...], decode_rate: float, chunks: int
) -> None:
    """Only a decode task and a step that run when the guest is ready delay it."""
    delay = longest_delay(lambda: make_world(layout, decode_rate), flood=12, chunks=chunks)
    assert delay <= PROBE.decode / decode_rate + STEP_SECONDS + PLAN_LEAD


@BOTTLENECKS
def test_a_flood_of_prompts_delays_another_tenant_by_one_encode_task_more(
    decode_rate: float,
) -> None:
    encode = 8 * CHUNK_SECONDS

    def world() -> World:
        return make_world(APART, decode_rate, encode_rate=encode_cost(1) / encode)

    most = encode + PROBE.decode / decode_rate + STEP_SECONDS + PLAN_LEAD
    assert longest_delay(world, flood=40, chunks=1) <= most


def longest_delay(new_world: Callable[[], World], *, flood: int, chunks: int) -> float:
    """Return the largest delay of a first chunk by another tenant's flood, over many moments."""
    alone = first_chunk_seconds(new_world(), 0.0)
    delays = []
    for moment in range(12):
        world = new_world()
        for index in range(flood * 5 if chunks == 1 else flood):
            world.add(f"flood-{index}", chunks=chunks, tenant="flood")
        delays.append(first_chunk_seconds(world, (15 + 0.37 * moment) * CHUNK_SECONDS) - alone)
        assert world.live or world.scheduler.decoding.num_waiting, "the flood is over"
    return max(delays)


def first_chunk_seconds(world: World, arrival: float) -> float:
    """Return the seconds that a guest that arrives after `arrival` waits for its first chunk."""
    world.run(until=arrival)
    arrival = world.now
    world.add("guest", tenant="guest", chunks=3)
    while "guest" not in world.delivered:
        assert world.tick()
    return world.delivered["guest"][0] - arrival


@LAYOUTS
@BOTTLENECKS
def test_flex_does_not_starve(layout: tuple[tuple[Stage, ...], ...], decode_rate: float) -> None:
    """A quarter of a default tenant's chunks, and some even below a priority session."""
    world = make_world(layout, decode_rate)
    world.add("flex", tier="flex", tenant="f", chunks=2000)
    world.add("default", tenant="d", chunks=2000)
    world.run(until=400 * CHUNK_SECONDS)
    assert world.counts["default"] / world.counts["flex"] == pytest.approx(4, rel=0.15)
    before = world.counts
    world.add("live", tier="priority", tenant="p", chunks=2000)
    world.run(until=1400 * CHUNK_SECONDS)
    got = {name: world.counts[name] - before.get(name, 0) for name in world.counts}
    assert got["flex"] >= 0.01 * got["live"] > 0
    assert got["default"] + got["flex"] >= 0.1 * sum(got.values())


def test_admission_counts_the_decoder_where_it_is_the_bottleneck() -> None:
    """Steps would do for ten sessions in real time, the decoder for two."""
    period = 33 / 24
    rate, decode_rate = 10 * PROBE.chunk / period / 0.85, 2 * PROBE.decode / period / 0.84
    world = make_world(APART, decode_rate, rate=rate)
    world.add("warm-up", chunks=3)
    world.run()
    for index in range(2):
        world.add(f"live-{index}", tier="priority", chunks=30)
    with pytest.raises(CapacityError, match="in real time"):
        world.add("live-2", tier="priority")
    world.run()
    assert world.scheduler.stats().deadline_misses == 0


def test_admission_adds_up_what_stages_take_of_one_device() -> None:
    """Either stage alone would do for three sessions, both together for one."""
    period = 33 / 24
    rate, decode_rate = 3 * PROBE.chunk / period / 0.84, 3 * PROBE.decode / period / 0.84
    world = make_world(SHARED, decode_rate, rate=rate)
    world.add("warm-up", chunks=3)
    world.run()
    world.add("live-0", tier="priority", chunks=30)
    with pytest.raises(CapacityError, match="in real time"):
        world.add("live-1", tier="priority")
    world.run()
    assert world.scheduler.stats().deadline_misses == 0


@pytest.mark.parametrize("decode_rate", [SLOW, 2 * SLOW, FAST])
def test_other_tiers_get_their_share_beside_a_priority_session_and_no_more(
    decode_rate: float,
) -> None:
    """Also a session that has no work now and then, since it may not run ahead of the decoder."""
    world = make_world(SHARED, decode_rate)
    world.add("other", chunks=500)
    world.run(until=20 * CHUNK_SECONDS)
    world.add("live", tier="priority", chunks=100)
    before = delivered(world, "other")
    while len(world.delivered.get("live", ())) < 100:
        assert world.tick()
    others = delivered(world, "other") - before
    assert others / (others + 100) == pytest.approx(world.scheduler.config.batch_share, abs=0.03)
