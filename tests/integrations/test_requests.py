"""From another server's request to ours."""

from typing import Any

import numpy as np
import pytest

from helios_serve.errors import InvalidRequestError
from helios_serve.integrations.requests import ForeignRequest
from helios_serve.model_executor.models.helios.config import read_config
from helios_serve.model_executor.models.nano.checkpoint import nano_checkpoint
from helios_serve.options.sampling import SamplingParams
from helios_serve.video_request import VideoRequest


def converted(options: dict[str, Any], **fields: Any) -> VideoRequest:
    folder = nano_checkpoint("nano")
    assert folder is not None
    foreign = ForeignRequest(request_id="x", prompt="a dog", options=options, **fields)
    return foreign.to_video_request("nano", read_config(folder))


def test_names_of_diffusers_are_known_and_none_is_the_checkpoints_choice() -> None:
    options = {"pyramid_num_inference_steps_list": [1, 2, 3], "guidance_scale": None, "seed": 4}
    params = converted(options).params
    assert params == SamplingParams(width=64, height=64, steps=(1, 2, 3), seed=4)


def test_both_names_of_an_option_are_known_wherever_requests_come_from() -> None:
    options = {"is_amplify_first_chunk": True, "is_skip_first_chunk": True}
    params = converted(options | {"steps": [1, 2, 3], "amplify_first_chunk": True}).params
    assert (params.amplify_first_chunk, params.skip_first_chunk) == (True, True)


def test_references_are_brought_to_the_size() -> None:
    image = np.zeros((100, 30, 3), np.uint8)
    request = converted({"width": 64, "height": 128}, image=image)
    assert request.image is not None
    assert (request.image.width, request.image.height) == (64, 128)
    request.check_inputs()


@pytest.mark.parametrize(
    ("options", "fields", "message"),
    [
        ({"colour": 1}, {}, "got unknown option 'colour', expected one of: .*width, height"),
        ({"seed": "x"}, {}, "got seed 'x', expected an integer"),
        ({"width": 100}, {}, "got size 100x64, expected"),
        ({"steps": [1]}, {}, "got 1 step counts"),
        (
            {"steps": [1, 2, 3], "pyramid_num_inference_steps_list": [3, 2, 1]},
            {},
            r"got two values for steps, \[1, 2, 3\] and \[3, 2, 1\]: send only one",
        ),
        ({}, {"image": 1, "video": 2}, "got both an image and a video"),
    ],
)
def test_what_does_not_fit_is_refused(
    options: dict[str, Any], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        converted(options, **fields)
