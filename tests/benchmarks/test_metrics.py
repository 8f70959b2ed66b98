"""Metrics of sessions equal numbers that were worked out by hand."""

import pytest

from helios_serve.benchmarks.load.tenants import LoadTenant, LoadTenants
from helios_serve.benchmarks.measure.fairness import fairness, union
from helios_serve.benchmarks.measure.goodput import Slo
from helios_serve.benchmarks.measure.metrics import session_metrics
from helios_serve.benchmarks.measure.playback import needed_buffer, play, stalls
from helios_serve.benchmarks.measure.record import SessionRecord, SwitchRecord
from helios_serve.errors import InvalidRequestError
from tests.support.bench_records import session

LATE = (2.0, 2.5, 5.0, 5.5, 8.0)
"""Chunks of one second of video. A player without a buffer starts at 2, waits from 4 to 5 for the
third chunk and from 7 to 8 for the last: the fourth one is early."""


def test_latencies_count_from_the_intended_start() -> None:
    record = session(intended=1.0, arrivals=LATE, sent=1.5, accepted=1.7)
    own = session_metrics(record, 0.0)
    assert own.ttfc == 1.0
    assert own.e2el == 7.0
    assert own.service_ttfc == 0.5
    assert own.service_e2el == 6.5
    assert own.send_lag == 0.5
    assert own.accept_latency == pytest.approx(0.2)
    assert own.icls == [0.5, 2.5, 0.5, 2.5]
    assert own.chunk_rtfs == [0.5, 2.5, 0.5, 2.5]
    assert own.session_rtf == pytest.approx(6 / 4)
    assert own.e2e_rtf == pytest.approx(7 / 5)


def test_a_late_chunk_stalls_the_player_once() -> None:
    """Playback shifts: later chunks are shown late by the same time, without a stall."""
    chunks = session(arrivals=LATE).chunks
    assert stalls(chunks, 24, 0.0) == [(4.0, 5.0), (7.0, 8.0)]
    found = play(chunks, 24, 0.0)
    assert (found.stalls, found.stall_seconds, found.play_seconds) == (2, 2.0, 5.0)
    assert found.rebuffer_ratio == pytest.approx(2 / 7)


def test_the_needed_buffer_is_the_smallest_without_a_stall() -> None:
    """The last chunk is due four seconds after the first, and comes after six."""
    chunks = session(arrivals=LATE).chunks
    assert needed_buffer(chunks, 24) == 2.0
    assert play(chunks, 24, 2.0).stall_seconds == 0
    assert play(chunks, 24, 1.9).stall_seconds == pytest.approx(0.1)


def test_a_stall_shorter_than_a_frame_is_none() -> None:
    found = play(session(arrivals=(0.0, 1.0 + 1 / 30)).chunks, 24, 0.0)
    assert found.stalls == 0
    assert found.stall_seconds == pytest.approx(1 / 30)


def test_a_session_with_one_chunk_has_no_latency_between_chunks() -> None:
    own = session_metrics(session(arrivals=(3.0,)), 0.0)
    assert (own.ttfc, own.icls, own.session_rtf, own.needed_buffer) == (3.0, [], None, 0.0)


def test_polling_knows_no_chunks() -> None:
    record = session(outcome="completed", polled=(4.0, 6.0))
    own = session_metrics(record, 0.0)
    assert (own.e2el, own.ttfc, own.needed_buffer) == (6.0, None, None)


def test_switches_that_were_seen_have_a_latency() -> None:
    record = session(arrivals=LATE)
    record.switches = [SwitchRecord("a", 2.0, 5.0), SwitchRecord("b", 6.0)]
    assert session_metrics(record, 0.0).switch_latencies == [3.0]


def test_a_switch_is_shown_when_the_player_comes_to_its_chunk() -> None:
    """The fourth chunk arrives at 5.5, and is shown at 6; with a buffer of two seconds at 7."""
    record = session(arrivals=LATE)
    record.switches = [SwitchRecord("a", 2.0, 5.5, 3), SwitchRecord("b", 6.0)]
    assert session_metrics(record, 0.0).switch_playbacks == [4.0]
    assert session_metrics(record, 2.0).switch_playbacks == [5.0]


@pytest.mark.parametrize(
    ("bounds", "is_met"),
    [
        ([], True),
        (["ttfc:2000"], True),
        (["ttfc:1999"], False),
        (["e2el:8000", "icl:2500", "rtf:1.5"], True),
        (["icl:2499"], False),
        (["rtf:1.4"], False),
        (["stall:2000"], True),
        (["stall:1999"], False),
    ],
)
def test_a_good_session_meets_every_bound(bounds: list[str], is_met: bool) -> None:
    assert Slo.parse(bounds).is_met(session(arrivals=LATE), 0.0) == is_met


@pytest.mark.parametrize("outcome", ["failed", "refused", "timed_out", "cancelled"])
def test_a_session_that_was_not_completed_is_not_good(outcome: str) -> None:
    assert not Slo().is_met(session(arrivals=LATE, outcome=outcome), 0.0)


def test_a_session_without_chunks_meets_no_bound_on_them() -> None:
    polled = session(outcome="completed", polled=(4.0, 6.0))
    assert Slo.parse(["e2el:6000"]).is_met(polled, 0.0)
    assert not Slo.parse(["ttfc:60000"]).is_met(polled, 0.0)


def test_a_session_of_a_trace_may_have_a_bound_of_its_own() -> None:
    """It takes eight seconds."""
    assert Slo().is_met(session(arrivals=LATE, slo_ms=8000), 0.0)
    assert not Slo().is_met(session(arrivals=LATE, slo_ms=7999), 0.0)
    assert not Slo.parse(["ttfc:1"]).is_met(session(arrivals=LATE, slo_ms=8000), 0.0)


@pytest.mark.parametrize("text", ["ttfc", "ttfc:", "ttfc:x", "ttfc:-1", "fps:3", "ttfc:nan"])
def test_bounds_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="expected KEY:VALUE"):
        Slo.parse([text])


def waiting(number: int, tenant: str, seconds: int) -> SessionRecord:
    """A session that gets its only chunk at the end of its wait."""
    return session(number, arrivals=(float(seconds),), frames=33, tenant=tenant)


def test_fairness_compares_tenants_that_waited_all_the_time() -> None:
    """a gets 3 chunks in 10 s at weight 1, b 2 at weight 2: 9.9 and 3.3 frames/s per weight. c
    waited for two of the ten seconds only."""
    tenants = LoadTenants(
        (LoadTenant(name="a"), LoadTenant(name="b", weight=2), LoadTenant(name="c"))
    )
    records = [
        *(waiting(number, "a", seconds) for number, seconds in enumerate((2, 6, 10))),
        *(waiting(number, "b", seconds) for number, seconds in enumerate((5, 10))),
        waiting(0, "c", 2),
    ]
    found = fairness(records, (0.0, 10.0), tenants.weight, 0.0)
    assert found.counted == ["a", "b"]
    assert found.shares["a"].weighted_rate == pytest.approx(9.9)
    assert found.shares["b"].weighted_rate == pytest.approx(3.3)
    assert found.shares["c"].backlogged == pytest.approx(0.2)
    assert found.jain == pytest.approx(13.2**2 / (2 * (9.9**2 + 3.3**2)))
    assert found.best_to_worst == pytest.approx(3.0)


def test_a_tenant_is_backlogged_while_its_player_waits() -> None:
    """It waits until 2, from 4 to 5 and from 7 to 8: for 4 of 10 seconds."""
    found = fairness([session(arrivals=LATE)], (0.0, 10.0), lambda _: 1.0, 0.0)
    assert found.shares["default"].backlogged == pytest.approx(0.4)
    assert found.jain is None


def test_spans_are_joined_and_cut_to_the_window() -> None:
    spans = [(8.0, 20.0), (1.0, 3.0), (2.0, 4.0), (-1.0, 0.5), (5.0, 5.0)]
    assert union(spans, (0.0, 10.0)) == [(0.0, 0.5), (1.0, 4.0), (8.0, 10.0)]
