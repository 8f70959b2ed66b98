"""Shares and limits of tenants, and their reloading."""

from typing import Any

import pytest

from helios_serve.core.admission import check_allowed
from helios_serve.errors import CapacityError, InvalidRequestError, NotAllowedError
from helios_serve.options.scheduling import SchedulingConfig, TenantConfig
from tests.support.scheduling import RATE, World, make_request, make_session

CHUNK_SECONDS = make_session(make_request("probe")).cost.chunk / RATE
EVERYONE = TenantConfig()


@pytest.mark.parametrize("num_seqs", [1, 32])
def test_new_weights_count_from_the_next_step_on(num_seqs: int) -> None:
    world = World(SchedulingConfig(max_num_seqs=num_seqs))
    for name in ("a", "b"):
        for index in range(3):
            world.add(f"{name}-{index}", tenant=name, chunks=2000)
    world.run(until=200 * CHUNK_SECONDS)
    before = {name: world.service(name) for name in "ab"}
    assert before["a"] / before["b"] == pytest.approx(1, rel=0.05)
    world.scheduler.set_tenants({"a": TenantConfig(weight=4.0)}, EVERYONE)
    world.run(until=600 * CHUNK_SECONDS)
    got = {name: world.service(name) - before[name] for name in "ab"}
    assert got["a"] / got["b"] == pytest.approx(4, rel=0.05)
    world.scheduler.set_tenants({}, TenantConfig(weight=4.0))
    before = {name: world.service(name) for name in "ab"}
    world.run(until=1000 * CHUNK_SECONDS)
    got = {name: world.service(name) - before[name] for name in "ab"}
    assert got["a"] / got["b"] == pytest.approx(1, rel=0.05)


def test_new_weights_count_for_those_who_wait_for_a_worker() -> None:
    world = World(workers=0)
    for index in range(40):
        for name in ("a", "b"):
            world.add(f"{name}-{index}", tenant=name)
    world.scheduler.set_tenants({"a": TenantConfig(weight=3.0)}, EVERYONE)
    world.add_worker("worker-0", num_blocks=60 * 29 + 1)
    world.run(until=20 * CHUNK_SECONDS)
    assert world.service("a") / world.service("b") == pytest.approx(3, rel=0.2)


def test_new_limits_are_for_new_sessions() -> None:
    world = World(workers=0)
    for index in range(3):
        world.add(f"a-{index}", tenant="a")
    world.scheduler.set_tenants({"a": TenantConfig(max_sessions=2)}, TenantConfig(max_queued=1))
    with pytest.raises(CapacityError, match=r"tenant a has .*: 3 sessions \(limit 2\)"):
        world.add("a-3", tenant="a")
    world.add("b-0", tenant="b")
    with pytest.raises(CapacityError, match=r"tenant b has .*: 1 waiting sessions \(limit 1\)"):
        world.add("b-1", tenant="b")
    world.add_worker("worker-0", num_blocks=60 * 29 * 4 + 1)
    world.run()
    assert world.service("a") == 3 * world.service("b") > 0
    world.add("a-3", tenant="a")


@pytest.mark.parametrize(
    ("limits", "tier", "code"),
    [
        ({"tiers": ("flex",)}, "default", "tier_not_allowed"),
        ({"tiers": ("default", "flex")}, "priority", "tier_not_allowed"),
        ({"sizes": ("640x384", "1x1")}, "default", "size"),
    ],
)
def test_tiers_and_sizes_are_those_that_are_allowed(
    limits: dict[str, Any], tier: str, code: str
) -> None:
    tenant = TenantConfig(**limits)
    request = make_request("a", size=(384, 384), tier=tier, tenant="acme")
    with pytest.raises((NotAllowedError, InvalidRequestError)) as raised:
        check_allowed(request, tenant)
    assert code in (getattr(raised.value, "code", None), raised.value.param)
    assert "tenant acme may use: " in str(raised.value)
    usual = make_request("a", size=(640, 384), tier=tenant.tier_like("default"))
    check_allowed(usual, tenant)
    check_allowed(request, EVERYONE)
