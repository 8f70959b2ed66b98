"""Workloads are drawn once, from a seed, and say what is wrong with their files."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from helios_serve.benchmarks.load.trace_file import encode_trace, read_trace
from helios_serve.benchmarks.load.workload import Workload, draw_workload
from helios_serve.errors import InvalidRequestError
from helios_serve.options.benchmarks import LoadOptions

SHAPES = (
    '[{"width": 64, "height": 64, "num_frames": 33, "weight": 3}, {"num_frames": 99, "fps": 12}]'
)


def draw(**options: Any) -> Workload:
    return draw_workload(LoadOptions(**options))


def test_the_same_seed_gives_the_same_sessions() -> None:
    first, again, other = (draw(request_rate=2.0, seed=seed) for seed in (1, 1, 2))
    assert first.requests == again.requests
    assert first.sha256 == again.sha256 != other.sha256


def test_what_is_drawn_does_not_shift_the_rest() -> None:
    """More shapes, tenants or cancellations change neither the times nor the prompts."""
    plain = draw(request_rate=2.0, num_prompts=50)
    mixed = draw(request_rate=2.0, num_prompts=50, random_request_config=SHAPES, cancel_share=0.5)
    assert [item.timestamp for item in plain.requests] == [
        item.timestamp for item in mixed.requests
    ]
    assert [item.prompt for item in plain.requests] == [item.prompt for item in mixed.requests]


def test_shapes_come_in_their_shares() -> None:
    requests = draw(num_prompts=4000, random_request_config=SHAPES, fps=24).requests
    counts = Counter((item.width, item.num_frames, item.fps) for item in requests)
    assert counts.keys() == {(64, 33, 24), (None, 99, 12)}
    assert counts[64, 33, 24] == pytest.approx(3000, rel=0.05)


def test_tenants_have_shares_tiers_and_rates(tmp_path: Path) -> None:
    tenants = [
        {"name": "a", "share": 3, "tier": "priority", "key": "sk-a"},
        {"name": "b", "weight": 2},
        {"name": "c", "request_rate": 5},
    ]
    (tmp_path / "tenants.json").write_text(json.dumps(tenants))
    workload = draw(
        tenants=str(tmp_path / "tenants.json"), request_rate=10.0, duration=200, tier="flex"
    )
    counts = Counter(item.tenant for item in workload.requests)
    assert counts["a"] == pytest.approx(1500, rel=0.1)
    assert counts["b"] == pytest.approx(500, rel=0.15)
    assert counts["c"] == pytest.approx(1000, rel=0.1)
    assert {(item.tenant, item.tier) for item in workload.requests} == {
        ("a", "priority"),
        ("b", "flex"),
        ("c", "flex"),
    }
    assert [workload.tenants.weight(name) for name in "abc"] == [3, 2, 1]
    assert workload.tenants.key("a") == "sk-a"
    times = [item.timestamp for item in workload.requests]
    assert times == sorted(times)


def test_clients_leave_and_switch_prompts() -> None:
    requests = draw(num_prompts=1000, num_frames=240, switch_every=3, cancel_share=0.3).requests
    stops = [item.stop_after_ms for item in requests if item.stop_after_ms is not None]
    assert len(stops) == pytest.approx(300, rel=0.15)
    assert all(0 <= stop <= 10_000 for stop in stops)
    assert [time for time, _ in requests[0].switches] == [3000, 6000, 9000]


def test_a_trace_comes_back_as_it_was_with_unknown_keys(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    requests = draw(request_rate=1.0, num_prompts=5, switch_every=1, steps=(2, 2, 2)).requests
    path.write_bytes(encode_trace(requests))
    assert tuple(read_trace(path)) == requests
    path.write_text('{"prompt": "a", "num_frames": 33, "timestamp": 5, "region": "eu"}\n')
    (request,) = read_trace(path)
    assert request.extra == {"region": "eu"}
    assert json.loads(encode_trace([request]))["region"] == "eu"


def test_a_trace_is_replayed_at_its_times(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    lines = [{"prompt": "p", "num_frames": 33, "timestamp": ms} for ms in (3000, 0, 1000)]
    path.write_text("\n".join(map(json.dumps, lines)))
    slow = draw(dataset_name="trace", dataset_path=str(path)).requests
    fast = draw(dataset_name="trace", dataset_path=str(path), trace_speed=2, duration=1).requests
    assert [item.intended for item in slow] == [0, 1, 3]
    assert [item.intended for item in fast] == [0, 0.5]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "expected a JSON object"),
        ("[1]", "expected a JSON object"),
        ('{"num_frames": 33}', "missing required field `prompt`"),
        ('{"prompt": "a", "num_frames": "x"}', "num_frames"),
        ('{"prompt": "a", "num_frames": 33, "timestamp": -1}', "expected at least 0"),
    ],
)
def test_a_broken_line_of_a_trace_is_named(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(f'{{"prompt": "a", "num_frames": 33}}\n\n{line}\n')
    with pytest.raises(InvalidRequestError, match=f"line 3: .*{reason}"):
        read_trace(path)


def test_prompts_of_files(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("one\n\ntwo\n")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "three", "num_frames": 66}\n')
    texts = draw(dataset_name="custom", dataset_path=str(tmp_path / "prompts.txt"), num_prompts=3)
    lines = draw(dataset_name="custom", dataset_path=str(tmp_path / "prompts.jsonl"), num_prompts=1)
    assert [item.prompt for item in texts.requests] == ["one", "two", "one"]
    assert [item.num_frames for item in lines.requests] == [66]


def test_heliosbench_asks_for_the_official_numbers_of_frames(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text('id,prompt,duration\n0,"a, b",120\n1,c,240\n2,d,720\n3,e,1440\n')
    requests = draw(dataset_name="heliosbench", dataset_path=str(path), num_prompts=4).requests
    assert [item.num_frames for item in requests] == [129, 261, 725, 1449]
    assert requests[0].prompt == "a, b"
    assert requests[0].extra == {"heliosbench_id": "0"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("prompt\na\n", "line 1: got columns"),
        ("id,prompt,duration\n0,a,long\n", "line 2: got duration 'long'"),
        ("id,prompt,duration\n", "without prompts"),
    ],
)
def test_a_broken_csv_is_named(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "prompts.csv").write_text(text)
    with pytest.raises(InvalidRequestError, match=reason):
        draw(dataset_name="heliosbench", dataset_path=str(tmp_path / "prompts.csv"))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"users": 2, "request_rate": 1.0}, "--users with --request-rate"),
        ({"duration": 5.0}, "--duration without a rate"),
        ({"arrival": "poisson", "request_rate": 1.0, "burstiness": 2.0}, "--arrival gamma"),
        ({"arrival": "constant"}, "without a rate"),
        ({"arrival": "series"}, "--rate-series"),
        ({"ramp_up_strategy": "linear"}, "incomplete ramp"),
        ({"think_time": 1.0}, "--users as well"),
        ({"dataset_name": "trace"}, "missing --dataset-path"),
        ({"dataset_name": "custom"}, "missing --dataset-path"),
        ({"random_request_config": "[]"}, "at least one shape"),
        ({"random_request_config": '[{"size": 3}]'}, "unknown field `size`"),
        ({"tenants": "/nowhere"}, "expected a readable file"),
        ({"request_rate": 0.001, "duration": 0.1}, "without sessions"),
    ],
)
def test_options_that_make_no_load_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidRequestError, match=reason):
        draw_workload(msgspec.convert(options, LoadOptions))


def test_a_flood_comes_between_its_times(tmp_path: Path) -> None:
    """A tenant with a rate of its own floods for 20 s; the others' sessions stay where they are."""
    calm = [{"name": "calm", "request_rate": 0.5}]
    flood = {"name": "flood", "request_rate": 5.0, "start": 30.0, "stop": 50.0}
    file = tmp_path / "tenants.json"
    drawn = []
    for tenants in (calm, [*calm, flood]):
        file.write_text(json.dumps(tenants))
        drawn.append(draw(tenants=str(file), duration=100.0, num_prompts=1000).requests)
    times = [item.intended for item in drawn[1] if item.tenant == "flood"]
    assert 60 < len(times) < 140
    assert 30.0 <= min(times) < 32.0
    assert 48.0 < max(times) < 50.0
    before, after = ([item.timestamp for item in some if item.tenant == "calm"] for some in drawn)
    assert before == after
