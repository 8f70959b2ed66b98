"""When the engine sends a worker its next plan, in virtual time."""

import pytest

from helios_serve.core.plan_pace import PLAN_LEAD
from tests.support.scheduling import make_request
from tests.support.timed_worker import STEP, TimedWorker, timed_engine


def test_the_engine_wakes_up_to_send_the_next_plan() -> None:
    """Plans of large steps are sent shortly before the worker needs them, and none too late.

    Steps of the first video, whose rates are still unknown, may be late.
    """
    worker = TimedWorker()
    core = timed_engine(worker)
    for name in ("a", "b"):
        core.add_request(make_request(name))
        while core.has_unfinished:
            core.step(1.0)
    steps_of_b, closing = worker.waits[-7:-1], worker.waits[-1]
    assert (steps_of_b[0], closing) == (0.0, 0.0)
    assert all(0 < wait <= STEP for wait in steps_of_b[1:])
    assert steps_of_b[-1] == pytest.approx(PLAN_LEAD)
