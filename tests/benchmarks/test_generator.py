"""The load generator keeps its times, whatever the server does. All times are virtual."""

import pytest

from helios_serve.benchmarks.measure.metrics import session_metrics
from helios_serve.benchmarks.measure.record import SessionRecord
from helios_serve.benchmarks.measure.statistics import quantile
from helios_serve.benchmarks.targets.target import (
    SessionFailedError,
    SessionRefusedError,
    UnreachableError,
)
from tests.support.scripted_target import run_script


def ttfcs(records: list[SessionRecord]) -> list[float]:
    return [found for record in records if (found := session_metrics(record, 0).ttfc) is not None]


def test_an_open_loop_starts_sessions_at_their_times() -> None:
    load, _ = run_script(lambda *_: [5.0], starts=[0.0, 1.0, 1.5])
    assert [record.sent for record in load.records] == [0.0, 1.0, 1.5]
    assert [record.ended for record in load.records] == [5.0, 6.0, 6.5]
    assert ttfcs(load.records) == [5.0, 5.0, 5.0]


def test_a_freeze_of_three_seconds_shows_in_an_open_loop() -> None:
    """The server does not respond from 5 to 8 s: sessions of that time wait until 8 s."""
    load, _ = run_script(
        lambda _, now: [max(8.0 - now, 0.05) if 5 <= now < 8 else 0.05],
        starts=[0.1 * index for index in range(200)],
    )
    found = ttfcs(load.records)
    assert max(found) == pytest.approx(3.0, abs=0.11)
    assert quantile(found, 0.99) > 2.7


def test_a_freeze_shows_under_a_limit_of_concurrency_as_well() -> None:
    """Only one session is sent during the freeze; the others wait in the client. Their latencies
    count from their intended times, which a client that starts its clock at sending never sees.
    """
    load, _ = run_script(
        lambda _, now: [3.05 if 4.999 <= now < 5.05 else 0.05],
        starts=[0.1 * index for index in range(200)],
        max_concurrency=1,
    )
    own = [session_metrics(record, 0) for record in load.records]
    served = [each.service_ttfc for each in own if each.service_ttfc is not None]
    assert sum(each > 1 for each in served) == 1
    assert quantile(served, 0.99) < 0.1
    assert sum(each > 1 for each in ttfcs(load.records)) > 20
    assert quantile(ttfcs(load.records), 0.99) > 2.7
    assert all(record.sent == record.released for record in load.records)


def test_a_closed_loop_waits_for_its_users() -> None:
    load, _ = run_script(lambda *_: [2.0], starts=[0.0] * 5, users=2, think_time=1.0)
    assert [record.sent for record in load.records] == [0, 0, 3, 3, 6]
    assert [record.intended for record in load.records] == [0, 0, 3, 3, 6]


def test_a_closed_loop_ends_with_its_duration() -> None:
    load, _ = run_script(lambda *_: [2.0], starts=[0.0] * 100, users=2, duration=5.0)
    assert [record.sent for record in load.records] == [0, 0, 2, 2, 4, 4]
    assert {record.outcome for record in load.records} == {"completed"}


def test_a_session_that_takes_too_long_is_given_up() -> None:
    load, target = run_script(lambda *_: [1.0, 50.0], starts=[0.0, 1.0], timeout=10.0)
    assert [(record.outcome, record.ended) for record in load.records] == [
        ("timed_out", 10.0),
        ("timed_out", 11.0),
    ]
    assert target.left == [0, 1]
    assert [len(record.chunks) for record in load.records] == [1, 1]


def test_the_time_in_the_clients_queue_counts_for_the_timeout() -> None:
    load, _ = run_script(lambda *_: [6.0], starts=[0.0, 0.0], timeout=10.0, max_concurrency=1)
    assert [record.outcome for record in load.records] == ["completed", "timed_out"]


def test_a_client_that_leaves_is_no_failure() -> None:
    load, target = run_script(lambda *_: [1.0, 9.0], starts=[0.0], stop_after_ms=4000)
    (record,) = load.records
    assert (record.outcome, record.code, record.ended) == ("cancelled", "left", 4.0)
    assert target.left == [0]


@pytest.mark.parametrize(
    ("error", "outcome", "code"),
    [
        (SessionRefusedError("queue_full", "full"), "refused", "queue_full"),
        (SessionFailedError("invalid_value", "bad"), "failed", "invalid_value"),
        (UnreachableError("reset"), "failed", "connection"),
    ],
)
def test_errors_are_outcomes(error: Exception, outcome: str, code: str) -> None:
    load, _ = run_script(lambda *_: error, starts=[0.0])
    (record,) = load.records
    assert (record.outcome, record.code, record.error) == (outcome, code, str(error))
    assert load.stopped_because is None


def test_a_refusal_after_the_acceptance_is_a_failure() -> None:
    def script(record: SessionRecord, now: float) -> Exception:
        record.accepted = now
        return SessionRefusedError("shutting_down", "bye")

    load, _ = run_script(script, starts=[0.0])
    assert load.records[0].outcome == "failed"


def test_a_server_that_is_gone_ends_the_load() -> None:
    """After ten sessions in a row that cannot connect. What was measured is kept."""
    load, _ = run_script(
        lambda _, now: [0.1] if now < 5 else UnreachableError("refused"),
        starts=[float(index) for index in range(100)],
    )
    assert load.stopped_because is not None
    assert "cannot be reached" in load.stopped_because
    assert [record.outcome for record in load.records] == ["completed"] * 5 + ["failed"] * 10


def test_a_load_that_is_stopped_abandons_its_sessions() -> None:
    load, target = run_script(
        lambda *_: [1.0, 9.0], starts=[float(index) for index in range(100)], stop_at=2.5
    )
    assert load.stopped_because == "the test stops it"
    assert [record.outcome for record in load.records] == ["cancelled"] * 3
    assert [record.code for record in load.records] == ["interrupted"] * 3
    assert [len(record.chunks) for record in load.records] == [1, 1, 0]
    assert sorted(target.left) == [0, 1, 2]
