"""Lanes of a simulated worker: what they take of each other and of a host, and what waits."""

import msgspec
import pytest

from helios_serve.benchmarks.simulator.costs import DeviceCosts, Lane
from helios_serve.benchmarks.simulator.host import Host
from helios_serve.benchmarks.simulator.lanes import Contention, LaneJob, SimulatedWorker
from helios_serve.messages import SchedulerOutput
from helios_serve.options.workers import CHUNKS_WAITING, WorkerConfig
from tests.support.simulated import load_of, run_load, seconds_of

COMMAND = SchedulerOutput()
CONTENDING = msgspec.structs.replace(
    seconds_of(sharing=1.0),
    slowdowns={"denoise": {"decode": 0.5}, "decode": {"denoise": 2.0}, "segment": {"decode": 4.0}},
)


def worker(costs: DeviceCosts, host: Host | None = None, name: str = "one") -> SimulatedWorker:
    return SimulatedWorker(name, WorkerConfig(), Contention(costs), host)


def put(to: SimulatedWorker, lane: Lane, seconds: float, segment: float = 0.0) -> None:
    to.put(lane, LaneJob(COMMAND, seconds, segment), 0.0)


def ends(of: SimulatedWorker) -> list[tuple[Lane, float]]:
    """Run all jobs; returns when each ends."""
    found, now = [], 0.0
    while (end := of.next_end(now)) is not None:
        now = end
        lane, _ = of.finish(now)
        found.append((lane, round(now, 6)))
    return found


def test_each_lane_loses_to_each_other_one_what_was_measured() -> None:
    """The decoder takes 3 times as long while steps run, these 1.5 times as long meanwhile."""
    one = worker(CONTENDING)
    put(one, "denoise", 2.0)
    put(one, "decode", 2.0)
    assert ends(one) == [("denoise", 3.0), ("decode", 4.0)]
    assert (one.busy["denoise"], one.busy["decode"]) == pytest.approx((3.0, 4.0))


def test_pairs_that_were_not_measured_share_the_device() -> None:
    one = worker(CONTENDING)
    put(one, "denoise", 1.0)
    put(one, "encode", 1.0)
    assert ends(one) == [("denoise", 2.0), ("encode", 2.0)]


def test_slowdowns_of_several_lanes_add_up() -> None:
    """Encoding prompts costs the decoder as much as it lasts, steps twice that."""
    one = worker(CONTENDING)
    for lane in ("denoise", "encode"):
        put(one, lane, 8.0)
    put(one, "decode", 1.0)
    assert ends(one)[0] == ("decode", 4.0)


def test_the_decoder_stops_while_segments_wait() -> None:
    """One is encoded, some wait, and the decoder holds one. Frames take 1 s, segments 10 s."""
    one, chunks = worker(seconds_of()), CHUNKS_WAITING + 4
    for _ in range(chunks):
        put(one, "decode", 1.0, segment=10.0)
    found = ends(one)
    free = CHUNKS_WAITING + 2
    assert [end for lane, end in found if lane == "decode"] == [
        *(float(number) for number in range(1, free + 1)),
        *(float(2 + 10 * number) for number in range(1, chunks - free + 1)),
    ]
    assert [end for lane, end in found if lane == "segment"] == [
        float(1 + 10 * number) for number in range(1, chunks + 1)
    ]


def test_workers_of_a_host_share_its_cores() -> None:
    """Two keep a core busy each, of one; when the first is done, the other has it for itself."""
    costs = msgspec.structs.replace(seconds_of(), cores={"segment": 1.0})
    host = Host(1.0)
    first, second = worker(costs, host, "first"), worker(costs, host, "second")
    put(first, "segment", 1.0)
    assert first.next_end(0.0) == 1.0
    put(second, "segment", 2.0)
    put(second, "denoise", 2.5)  # which needs no core
    assert set(host.take_changed()) == {"first", "second"}
    assert (first.next_end(0.0), second.next_end(0.0)) == (2.0, 2.5)
    first.finish(2.0)
    assert second.next_end(2.0) == 2.5
    assert second.finish(2.5)[0] == "denoise"
    assert second.next_end(2.5) == 3.0


def test_a_worker_that_is_gone_needs_no_cores() -> None:
    costs = msgspec.structs.replace(seconds_of(), cores={"segment": 1.0})
    host = Host(1.0)
    first, second = worker(costs, host, "first"), worker(costs, host, "second")
    for each in (first, second):
        put(each, "segment", 1.0)
    host.leave("first", first.cores, 1.0)
    assert second.next_end(1.0) == 1.5


@pytest.mark.parametrize(
    ("cores", "per_host", "factor"), [(None, 2, 1.0), (2.0, 2, 1.0), (1.0, 1, 1.0), (1.0, 2, 2.0)]
)
def test_a_fleet_is_slower_where_its_hosts_have_too_few_cores(
    cores: float | None, per_host: int, factor: float
) -> None:
    """Two workers, each with a video whose steps keep a core busy."""
    costs = msgspec.structs.replace(seconds_of(step=0.5), cores={"denoise": 1.0})
    load = load_of([0.0, 0.0], num_frames=33, steps=(1, 1, 1))
    plain = run_load(load, costs, workers=2)
    hosted = run_load(load, costs, workers=2, host_cores=cores, host_workers=per_host)
    before, after = ([record.ended for record in made.run.records] for made in (plain, hosted))
    assert after == pytest.approx([factor * (end or 0.0) for end in before], abs=0.02)
