"""Phases, positions and remaining times of requests, on a worker in virtual time."""

import pytest

from helios_serve.engine.loop.events import ChunkReady
from helios_serve.engine.requests.progress import measured_pace, progress_of
from tests.support.scheduling import make_request
from tests.support.timed_worker import DECODE, ENOUGH_TIME, TimedWorker, timed_engine


class Run:
    """An engine on a `TimedWorker`, and when chunks were delivered."""

    def __init__(self) -> None:
        self.worker = TimedWorker()
        self.delivered: dict[str, list[float]] = {}
        self.core = timed_engine(self.worker)

    def step(self) -> None:
        for event in self.core.step(ENOUGH_TIME):
            if isinstance(event, ChunkReady):
                self.delivered.setdefault(event.request_id, []).append(self.worker.now)
        self.core.scheduler.check_integrity()

    def run_to(self, name: str, chunks: int) -> None:
        while len(self.delivered.get(name, ())) < chunks:
            self.step()

    def eta(self, name: str) -> float | None:
        return progress_of(self.core, name).eta_seconds


@pytest.mark.parametrize("others", [0, 5])
def test_the_remaining_time_is_right_from_the_second_chunk_on(others: int) -> None:
    """Decoding is the bottleneck. Others have as much to do."""
    run, chunks = Run(), 12
    for index in range(others):
        run.core.add_request(make_request(f"other-{index}", chunks=chunks))
    run.core.add_request(make_request("a", chunks=chunks))
    said: list[tuple[float, float]] = []
    for delivered in range(2, chunks):
        run.run_to("a", delivered)
        for _ in range(5):
            eta = run.eta("a")
            if len(run.delivered["a"]) < chunks:
                assert eta is not None
                said.append((run.worker.now, eta))
            run.step()
    run.run_to("a", chunks)
    end = run.delivered["a"][-1]
    for now, eta in said:
        assert eta == pytest.approx(end - now, rel=0.25, abs=DECODE), now


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


def test_the_pace_is_that_of_the_last_chunks() -> None:
    assert measured_pace([]) is None
    assert measured_pace([3.0]) is None
    assert measured_pace([3.0, 5.0, 9.0]) == 3.0
