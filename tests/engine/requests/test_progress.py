"""Phases, positions and remaining times of requests, on a worker in virtual time."""

from typing import NamedTuple

import pytest

from helios_serve.engine.loop.events import ChunkReady
from helios_serve.engine.requests.progress import progress_of
from helios_serve.options.scheduling import SchedulingConfig, TenantConfig
from tests.support.scheduling import Jobs, make_request
from tests.support.timed_worker import DECODE, ENOUGH_TIME, STEP, TimedWorker, timed_engine


class Run:
    """An engine on a `TimedWorker`, with the delivery times of chunks."""

    def __init__(
        self,
        decode: float = DECODE,
        *,
        fixed: float = 0.0,
        lag: float = 0.0,
        tokens: int = SchedulingConfig().max_num_batched_tokens,
    ) -> None:
        self.worker = TimedWorker(decode, fixed=fixed, lag=lag)
        self.delivered: dict[str, list[float]] = {}
        heavy = SchedulingConfig(
            tenants={"heavy": TenantConfig(weight=3.0)}, max_num_batched_tokens=tokens
        )
        self.core = timed_engine(self.worker, heavy)

    def step(self, timeout: float = ENOUGH_TIME) -> list[str]:
        """Run a step, and return the requests that got a chunk."""
        events = self.core.step(timeout)
        made = [event.request_id for event in events if isinstance(event, ChunkReady)]
        for name in made:
            self.delivered.setdefault(name, []).append(self.worker.now)
        return made

    def run_to(self, name: str, chunks: int) -> None:
        while len(self.delivered.get(name, ())) < chunks:
            self.step()

    def eta(self, name: str) -> float | None:
        return progress_of(self.core, name).eta_seconds


class Overlapping(Jobs):
    """Jobs that do not slow each other down."""

    @property
    def next_end(self) -> float:
        return min(self.left.values())

    def advance(self, seconds: float) -> None:
        for stage in self.left:
            self.left[stage] -= seconds


class Ask(NamedTuple):
    """A request that arrives after `after` seconds."""

    chunks: int
    after: float = 0.0
    tenant: str = "heavy"
    tier: str = "default"


FIXED = 0.25
"""Seconds of a plan, if it is not only its steps that take time."""
LOADS = {
    "one": [Ask(12)],
    "six equal": [Ask(8)] * 6,
    "short behind long": [Ask(16), Ask(16), Ask(6, after=20.0)],
    "mixed lengths": [Ask(5), Ask(12), Ask(20), Ask(8, after=10.0)],
    "staggered": [Ask(10, after=6.0 * index) for index in range(5)],
    "weights": [Ask(12), Ask(12, tenant="light")],
    "weights, three each": [Ask(9)] * 3 + [Ask(9, tenant="light")] * 3,
    "beside priority": [Ask(10, tier="priority"), Ask(10), Ask(10)],
    "beside flex": [Ask(6, tier="flex"), Ask(10), Ask(10)],
}


@pytest.mark.parametrize("decode", [DECODE, 0.3], ids=["decode", "denoise"])
@pytest.mark.parametrize("fixed", [0.0, FIXED], ids=["", "fixed"])
@pytest.mark.parametrize("tokens", [12288, 1 << 20], ids=["", "packed"])
@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
def test_the_remaining_time_is_right_from_the_second_chunk_on(
    load: list[Ask], tokens: int, fixed: float, decode: float
) -> None:
    """Within 25 %, whichever stage is slower.

    A flow gets whole turns: the last chunk of a tenant's only video may come by one of them sooner.
    """
    run = Run(decode, fixed=fixed, tokens=tokens)
    said = dict[str, list[tuple[float, float | None]]]()
    run.core.add_request(make_request("warm-up", chunks=3))
    run.run_to("warm-up", 3)
    start, waiting = run.worker.now, {f"video-{index}": ask for index, ask in enumerate(load)}
    chunks = {name: ask.chunks for name, ask in waiting.items()}
    while waiting or run.core.has_unfinished:
        for name, ask in list(waiting.items()):
            if run.worker.now >= start + ask.after:
                del waiting[name]
                run.core.add_request(
                    make_request(name, chunks=ask.chunks, tenant=ask.tenant, tier=ask.tier)
                )
        for name in run.step(0.1 if waiting else ENOUGH_TIME):
            if 2 <= len(run.delivered[name]) < chunks[name] and not waiting:
                said.setdefault(name, []).append((run.worker.now, run.eta(name)))
    run.core.scheduler.check_integrity()
    assert said.keys() == chunks.keys()
    for name, told in said.items():
        for now, eta in told:
            left = run.delivered[name][-1] - now
            turn = decode if load is LOADS["weights"] else 0.0
            assert eta == pytest.approx(left, rel=0.25, abs=turn), (name, now)


@pytest.mark.parametrize("factor", [0.1, 10.0], ids=["faster", "slower"])
def test_a_change_of_speed_is_learnt_within_seconds(factor: float) -> None:
    """Rates have a longer memory of slow jobs than of fast ones; estimates have not."""
    decode, chunks = 0.4, 60
    run = Run(decode / factor)
    for index in range(6):
        run.core.add_request(make_request(f"video-{index}", chunks=chunks))
    run.run_to("video-0", 6)
    run.worker.decode, changed = decode, run.worker.now
    while run.worker.now < changed + 15:
        run.step()
    eta, asked = run.eta("video-0"), run.worker.now
    run.run_to("video-0", chunks)
    assert eta == pytest.approx(run.delivered["video-0"][-1] - asked, rel=0.25)


def test_stages_that_overlap_are_estimated_by_what_they_get_done() -> None:
    """A device of two cores runs two stages at once as fast as one of them alone."""
    run = Run(1.5)
    run.worker.jobs = Overlapping()
    for index in range(6):
        run.core.add_request(make_request(f"video-{index}", chunks=12))
    run.run_to("video-0", 3)
    eta, asked = run.eta("video-0"), run.worker.now
    run.run_to("video-0", 12)
    assert eta == pytest.approx(run.delivered["video-0"][-1] - asked, rel=0.25)


def test_time_that_is_lost_between_jobs_counts() -> None:
    """Where jobs are short, messages take as long as they do."""
    run = Run(0.2, lag=0.2)
    for name in ("warm-up", "a"):
        run.core.add_request(make_request(name, chunks=10))
        run.run_to(name, 2)
    eta, asked = run.eta("a"), run.worker.now
    run.run_to("a", 10)
    left = run.delivered["a"][-1] - asked
    assert eta == pytest.approx(left, rel=0.25)
    assert left > 8 * (0.2 + 6 * STEP + 0.5), "nothing was lost"


@pytest.mark.parametrize("others", [0, 5])
def test_before_the_second_chunk_decoding_is_estimated(others: int) -> None:
    run, chunks = Run(), 12
    run.core.add_request(make_request("warm-up", chunks=3))
    run.run_to("warm-up", 3)
    for index in range(others):
        run.core.add_request(make_request(f"other-{index}", chunks=chunks))
    run.core.add_request(make_request("a", chunks=chunks))
    begun = run.worker.now
    while run.core.scheduler.sessions["a"].cursor < (0, 1, 0):
        run.step()
    eta, asked = run.eta("a"), run.worker.now
    run.run_to("a", chunks)
    assert eta is not None
    assert eta == pytest.approx(run.delivered["a"][-1] - asked, rel=0.5)
    assert eta > 0.6 * chunks * DECODE * (1 + others), "it knows of no decoding"
    assert begun < asked


def test_nothing_is_said_before_anything_was_measured() -> None:
    run = Run()
    run.core.add_request(make_request("a", chunks=3))
    for _ in range(4):
        run.step()
        assert run.eta("a") is None


def test_a_request_is_queued_until_a_worker_has_it() -> None:
    run = Run()
    run.step()
    for name in ("a", "b"):
        run.core.add_request(make_request(name, prompt=name, chunks=2))
    assert progress_of(run.core, "a")[:2] == ("queued", 2)  # both arrived at the same time
    run.core._dispatch()
    assert [progress_of(run.core, name).phase for name in "ab"] == ["encoding", "queued"]
    seen = []
    while "a" in run.core.decode_stage.assemblers:
        seen.append(progress_of(run.core, "a").phase)
        run.step()
    assert list(dict.fromkeys(seen)) == ["encoding", "denoising", "decoding"]
