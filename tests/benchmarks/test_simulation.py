"""The simulator: times that can be computed by hand, failures, and the same bytes for one seed."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from helios_serve.benchmarks.simulator.costs import TaskCosts
from helios_serve.benchmarks.simulator.devices import DATASHEETS, device_costs
from helios_serve.benchmarks.simulator.failures import incident
from helios_serve.benchmarks.simulator.simulation import simulated_result, simulation_lines
from helios_serve.errors import InvalidRequestError
from helios_serve.options.scheduling import BatchLimits
from tests.support.scheduling import CONFIG
from tests.support.simulated import load_of, run_load, seconds_of

TINY = 1e-6


def test_a_lone_session_takes_the_sum_of_its_parts() -> None:
    """0.5 s of encoding, then chunks of six steps of 0.25 s; the last one is decoded in 1 s."""
    made = run_load(load_of([0.0]), seconds_of(encode=0.5, step=0.25, decode=1.0))
    (record,) = made.run.records
    assert record.outcome == "completed"
    assert [chunk.at for chunk in record.chunks] == pytest.approx([3.0, 4.5, 6.0])
    assert [chunk.frames for chunk in record.chunks] == [33, 33, 33]
    counts = made.counts
    assert (counts.decodes, counts.encodes) == (3, 1)
    assert counts.denoise_seconds == pytest.approx(18 * 0.25)
    assert counts.decode_seconds == pytest.approx(3.0)


def test_the_host_encodes_a_chunk_while_the_device_makes_the_next_one() -> None:
    """0.75 s of encoding are added to each chunk, but not to the chunks after it. With 2 s, each
    chunk waits for the one before it."""
    costs = seconds_of(step=0.25, decode=0.5)
    free = run_load(load_of([0.0]), costs).run.records[0].chunks
    for seconds, late in ((0.75, (0.75, 0.75, 0.75)), (2.0, (2.0, 2.5, 3.0))):
        busy = msgspec.structs.replace(costs, segment=TaskCosts(overhead=seconds))
        made = run_load(load_of([0.0]), busy)
        (record,) = made.run.records
        expected = [chunk.at + more for chunk, more in zip(free, late, strict=True)]
        assert [chunk.at for chunk in record.chunks] == pytest.approx(expected)
        assert made.counts.decode_seconds == pytest.approx(1.5)


def test_a_worker_that_dies_while_its_host_encodes_loses_the_chunk() -> None:
    """It is denoised at 1.5 s, rendered at once, and would be encoded at 3.5 s. Another worker
    renders it again, and encodes it in 2 s."""
    costs = msgspec.structs.replace(seconds_of(step=0.25), segment=TaskCosts(overhead=2.0))
    made = run_load(load_of([0.0]), costs, workers=2, kill=("2.5:0",))
    (record,) = made.run.records
    assert record.outcome == "completed"
    assert record.chunks[0].at == pytest.approx(4.5)
    assert made.counts.decodes == 4


def test_stages_that_share_a_device_slow_each_other_down() -> None:
    """While a chunk is decoded, which takes 1 s alone, the next one's steps run at half speed."""
    shared = run_load(load_of([0.0]), seconds_of(step=0.25, decode=1.0, sharing=1.0))
    (record,) = shared.run.records
    assert [chunk.at for chunk in record.chunks] == pytest.approx([3.5, 6.0, 7.5])
    assert record.ended == pytest.approx(18 * 0.25 + 3.0)  # the device is never idle


def test_busy_time_is_the_sum_of_the_costs_and_littles_law_holds() -> None:
    costs = seconds_of(encode=0.1, step=0.2, decode=0.5)
    made = run_load(load_of([0.7 * index for index in range(40)]), costs, workers=3)
    records, seconds = made.run.records, made.run.seconds
    assert made.counts.denoise_seconds == pytest.approx(40 * 18 * 0.2)
    assert made.counts.decode_seconds == pytest.approx(40 * 3 * 0.5)
    assert made.counts.encode_seconds <= 40 * 0.1 + TINY
    ends = [record.ended or 0.0 for record in records]
    sojourn = sum(end - record.intended for end, record in zip(ends, records, strict=True)) / 40
    times = sorted([(item.intended, 1) for item in records] + [(end, -1) for end in ends])
    area = live = last = 0.0
    for time, change in times:
        area, live, last = area + live * (time - last), live + change, time
    assert area / seconds == pytest.approx(40 / seconds * sojourn, rel=1e-6)


def test_a_worker_that_dies_is_replaced_and_its_session_resumes_at_its_last_chunk() -> None:
    """It dies in the second chunk, 0.5 s after the first one was denoised; another is ready 5 s
    later, and makes the second chunk from its beginning.
    """
    costs = seconds_of(step=0.25)
    made = run_load(load_of([0.0]), costs, kill=("2.0:0",))
    (record,) = made.run.records
    assert [chunk.at for chunk in record.chunks] == pytest.approx([1.5, 8.5, 10.0])
    assert made.counts.deaths == 1
    assert made.counts.preemptions == 1


def test_a_cell_that_dies_resumes_its_sessions_and_others_take_new_ones() -> None:
    costs = seconds_of(step=0.25)
    made = run_load(load_of([0.0, 2.5]), costs, cells=2, kill_cell=("2.0:0",))
    first, second = made.run.records
    assert [chunk.at for chunk in first.chunks] == pytest.approx([1.5, 8.5, 10.0])
    assert [chunk.at for chunk in second.chunks] == pytest.approx([4.0, 5.5, 7.0])
    assert made.counts.deaths == 1


def test_sessions_are_refused_while_every_cell_is_down() -> None:
    made = run_load(load_of([0.0, 2.5]), seconds_of(step=0.25), kill_cell=("2.0:0",))
    assert [record.outcome for record in made.run.records] == ["completed", "refused"]


def test_a_drained_worker_finishes_no_chunk_twice() -> None:
    costs = seconds_of(step=0.25)
    made = run_load(load_of([0.0, 0.1]), costs, workers=2, drain=("1.6:0",))
    assert [record.outcome for record in made.run.records] == ["completed"] * 2
    assert made.counts.decodes == 6
    assert made.counts.deaths == 0


def test_workers_die_as_often_as_their_mean_life_says() -> None:
    starts = [0.5 * index for index in range(400)]
    costs = seconds_of(step=0.001)
    made = run_load(load_of(starts), costs, workers=8, mtbf=8 * 2.0 / 3600)
    assert 60 < made.counts.deaths < 140  # one every 2 s, for 200 s
    assert {record.outcome for record in made.run.records} <= {"completed", "failed"}


def test_a_viewer_pauses_what_runs_ahead() -> None:
    """A chunk plays for 1.375 s and is made in 0.3 s."""
    costs = seconds_of(step=0.05)
    free = run_load(load_of([0.0], num_frames=330), costs)
    held = run_load(load_of([0.0], num_frames=330), costs, max_lead=2)
    assert free.run.records[0].ended == pytest.approx(3.0)
    (record,) = held.run.records
    for index, chunk in enumerate(record.chunks[3:], start=3):
        seen = record.chunks[0].at + (index - 1) * 33 / 24
        assert chunk.at == pytest.approx(seen + 0.3, abs=0.31), index


def test_a_prompt_switch_is_seen_after_the_chunks_under_way() -> None:
    workload = load_of([0.0], num_frames=330, switches=((4000.0, "a cat"),))
    made = run_load(workload, seconds_of(encode=0.1, step=0.05), max_lead=2)
    (switch,) = made.run.records[0].switches
    assert switch.sent == pytest.approx(4.0)
    assert switch.seen is not None
    assert 0.3 < switch.seen - switch.sent < 3 * 33 / 24


def test_clients_that_leave_and_a_closed_loop() -> None:
    leaving = load_of([0.0, 0.0], stop_after_ms=1000.0)
    made = run_load(leaving, seconds_of(step=0.25))
    assert [record.outcome for record in made.run.records] == ["cancelled"] * 2
    users = load_of([0.0] * 6)
    users = users._replace(options=type(users.options)(users=2))
    made = run_load(users, seconds_of(step=0.25), limits=BatchLimits(max_num_seqs=1))
    running = [
        sum(other.intended <= record.intended < (other.ended or 0.0) for other in made.run.records)
        for record in made.run.records
    ]
    assert max(running) == 2
    assert all(record.outcome == "completed" for record in made.run.records)


def test_a_session_beyond_the_queue_is_refused() -> None:
    costs = seconds_of(step=0.25)
    limits = BatchLimits(max_queued=1)
    made = run_load(load_of([0.0] * 4), costs, limits=limits)
    assert "queue_full" in {record.code for record in made.run.records}


@pytest.mark.parametrize("text", ["60", "x:1", "-1:0", "5:4", "5:2-1", "5:0-4"])
def test_incidents_that_are_not_valid_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"SECONDS:NUMBER"):
        incident(text, 4, "kill")


def test_devices_that_were_not_measured_are_marked() -> None:
    for name in DATASHEETS:
        costs = device_costs(name, CONFIG)
        made = run_load(load_of([0.0], steps=(1, 1, 1)), costs)
        assert next(simulation_lines(made)).startswith("ROOFLINE, NOT MEASURED")
        assert simulated_result(made, command="")["helios"]["simulation"]["source"] == "roofline"
    with pytest.raises(InvalidRequestError, match="did you mean h100"):
        device_costs("h1000", CONFIG)


PROGRAM = """
import sys
from pathlib import Path
import msgspec
from helios_serve.benchmarks.measure.result_files import ResultFiles
from helios_serve.benchmarks.reports.run_report import run_report
from helios_serve.benchmarks.simulator.simulation import simulated_result
from tests.support.simulated import load_of, run_load, seconds_of

starts = [0.11 * index for index in range(60)]
requests = []
for index, request in enumerate(load_of(starts).requests):
    tier = ("default", "flex", "priority")[index % 3]
    requests.append(msgspec.structs.replace(request, tier=tier, tenant=f"tenant-{index % 5}"))
workload = load_of(starts)._replace(requests=tuple(requests))
costs = msgspec.structs.replace(
    seconds_of(encode=0.1, step=0.02, decode=0.2, sharing=1.0),
    residuals={"denoise": (0.9, 1.0, 1.2), "decode": (1.0, 1.5)},
)
folder = Path(sys.argv[1])
made = run_load(
    workload, costs, workers=3, cells=2, jitter=True, mtbf=0.01, kill_cell=("3:1",),
    trace=str(folder / "perfetto.json"), max_lead=2,
)
result = simulated_result(made, command="simulate")
ResultFiles(folder / "run.json").write(result, made.sent, made.run.records)
(folder / "report.html").write_text(run_report(result, made.run))
"""


def test_one_seed_gives_the_same_bytes_whatever_the_hashes_of_names(tmp_path: Path) -> None:
    """Result, sessions, report and trace of a load with tenants, tiers, jitter and deaths."""
    digests = set()
    for seed in ("0", "1", "2"):
        folder = tmp_path / seed
        folder.mkdir()
        subprocess.run(
            [sys.executable, "-c", PROGRAM, str(folder)],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[2])},
            check=True,
        )
        files = sorted(folder.iterdir())
        assert len(files) == 6
        digests.add(tuple(hashlib.sha256(path.read_bytes()).hexdigest() for path in files))
    assert len(digests) == 1
    trace = json.loads((tmp_path / "0" / "perfetto.json").read_text())
    names = {event["args"]["name"] for event in trace if event["name"] == "process_name"}
    assert names == {"cell 0", "cell 1"}
    assert {"X", "C", "i"} <= {event["ph"] for event in trace}
