"""Sizes whose jobs no worker can finish in time are refused, and the largest one is named."""

import re

import pytest

from helios_serve.core.cost import SessionCost, encode_cost
from helios_serve.core.session import Session
from helios_serve.core.time_limit import Speeds, TimeLimit
from helios_serve.errors import InvalidRequestError
from helios_serve.model_config import Geometry
from helios_serve.options.sampling import SamplingParams
from helios_serve.size import parse_size
from helios_serve.video_request import Frames, VideoRequest
from tests.support.scheduling import CONFIG

DEADLINE = 300.0
FAST = 1e30


def session(width: int, height: int, *, video: bool = False) -> Session:
    params = SamplingParams(width=width, height=height, num_frames=33)
    reference = Frames(b"", 33 * 20, height, width) if video else None
    request = VideoRequest(request_id="a", prompt="a dog", params=params, video=reference)
    return Session(request, request.resolve(CONFIG), CONFIG, arrival=0.0)


def longest(width: int, height: int) -> float:
    """FLOPs of the longest step."""
    asked = session(width, height)
    return max(SessionCost(CONFIG, Geometry(height, width), asked.params).steps)


def limited(stage: str, *, video: bool) -> Speeds:
    """A worker for which the job of a stage at 1280x768 takes just the deadline."""
    asked = session(1280, 768, video=video)
    works = {
        "denoise": max(asked.cost.steps),
        "encode": encode_cost(1, asked.request if video else None),
        "decode": asked.cost.decode,
    }
    return Speeds(FAST, FAST, FAST)._replace(**{stage: works[stage] / DEADLINE})


@pytest.mark.parametrize(
    ("stage", "video"), [("denoise", False), ("decode", False), ("encode", True)]
)
@pytest.mark.parametrize(("width", "height"), [(4096, 4096), (4096, 2048), (640, 4096)])
def test_the_largest_size_that_is_named_fits_and_the_next_does_not(
    width: int, height: int, stage: str, video: bool
) -> None:
    limit, speeds = TimeLimit(CONFIG, DEADLINE), limited(stage, video=video)
    slower = Speeds(*(speed / 2 for speed in speeds))
    with pytest.raises(InvalidRequestError) as raised:
        limit.check(session(width, height, video=video), [slower, speeds])
    assert raised.value.param == "size"
    found = re.search(r"at most (\d+x\d+)", str(raised.value))
    assert found is not None
    largest = parse_size(found[1])
    limit.check(session(*largest, video=video), [speeds])
    assert abs(largest.width / largest.height / (width / height) - 1) < 0.25
    step = CONFIG.size_multiple
    with pytest.raises(InvalidRequestError):
        limit.check(session(largest.width + step, largest.height + step, video=video), [speeds])


def test_the_message_names_the_time_and_the_limit() -> None:
    rate = longest(4096, 4096) / 1000.0
    with pytest.raises(InvalidRequestError, match="4096x4096, one step of which takes at least 10"):
        TimeLimit(CONFIG, DEADLINE).check(session(4096, 4096), [Speeds(rate)])


@pytest.mark.parametrize(
    ("speeds", "message"),
    [
        (Speeds(decode=1e5), "a chunk of which takes at least .* s to decode on any worker"),
        (Speeds(encode=1e5), "whose prompts and reference take at least .* s to encode"),
        (Speeds(1e12, decode=1e5), "one step of which"),
    ],
)
def test_the_message_names_the_job_that_takes_longest(speeds: Speeds, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        TimeLimit(CONFIG, DEADLINE).check(session(4096, 4096, video=True), [speeds])


def test_each_stage_has_its_fastest_worker() -> None:
    TimeLimit(CONFIG, DEADLINE).check(
        session(640, 384), [Speeds(denoise=1.0, decode=FAST), Speeds(denoise=FAST, decode=1.0)]
    )


def test_an_encoded_reference_is_not_encoded_again() -> None:
    """So a video that is resumed is not refused for it."""
    asked = session(4096, 4096, video=True)
    limit, slow = TimeLimit(CONFIG, DEADLINE), [Speeds(encode=1e6)]
    with pytest.raises(InvalidRequestError):
        limit.check(asked, slow)
    asked.request = asked.request.without_media()
    limit.check(asked, slow)


def test_without_a_known_speed_nothing_is_refused() -> None:
    TimeLimit(CONFIG, DEADLINE).check(session(4096, 4096), [])
    TimeLimit(CONFIG, DEADLINE).check(session(4096, 4096), [Speeds()])


def test_no_size_at_all_may_fit() -> None:
    with pytest.raises(InvalidRequestError, match="expected a faster worker"):
        TimeLimit(CONFIG, 1e-9).check(session(640, 384), [Speeds(1.0)])
