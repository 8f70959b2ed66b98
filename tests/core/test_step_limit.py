"""Sizes whose steps no worker can finish in time are refused, and the largest one is named."""

import re

import pytest

from helios_serve.core.cost import SessionCost
from helios_serve.core.session import Session
from helios_serve.core.step_limit import StepLimit
from helios_serve.errors import InvalidRequestError
from helios_serve.model_config import Geometry
from helios_serve.options.sampling import SamplingParams
from helios_serve.size import parse_size
from helios_serve.video_request import VideoRequest
from tests.support.scheduling import CONFIG

DEADLINE = 300.0


def session(width: int, height: int) -> Session:
    params = SamplingParams(width=width, height=height, num_frames=33)
    request = VideoRequest(request_id="a", prompt="a dog", params=params)
    return Session(request, request.resolve(CONFIG), CONFIG, arrival=0.0)


def longest(width: int, height: int) -> float:
    """FLOPs of the longest step."""
    asked = session(width, height)
    return max(SessionCost(CONFIG, Geometry(height, width), asked.params).steps)


@pytest.mark.parametrize(("width", "height"), [(4096, 4096), (4096, 2048), (640, 4096)])
def test_the_largest_size_that_is_named_fits_and_the_next_does_not(width: int, height: int) -> None:
    rate = longest(1280, 768) / DEADLINE
    limit = StepLimit(CONFIG, DEADLINE)
    with pytest.raises(InvalidRequestError) as raised:
        limit.check(session(width, height), [rate / 2, rate])
    assert raised.value.param == "size"
    found = re.search(r"at most (\d+x\d+)", str(raised.value))
    assert found is not None
    largest = parse_size(found[1])
    limit.check(session(*largest), [rate])
    assert abs(largest.width / largest.height / (width / height) - 1) < 0.25
    step = CONFIG.size_multiple
    with pytest.raises(InvalidRequestError):
        limit.check(session(largest.width + step, largest.height + step), [rate])


def test_the_message_names_the_time_and_the_limit() -> None:
    rate = longest(4096, 4096) / 1000.0
    with pytest.raises(InvalidRequestError, match="4096x4096, one step of which takes at least 10"):
        StepLimit(CONFIG, DEADLINE).check(session(4096, 4096), [rate])


def test_without_a_known_rate_nothing_is_refused() -> None:
    StepLimit(CONFIG, DEADLINE).check(session(4096, 4096), [])


def test_no_size_at_all_may_fit() -> None:
    with pytest.raises(InvalidRequestError, match="expected a faster worker"):
        StepLimit(CONFIG, 1e-9).check(session(640, 384), [1.0])
