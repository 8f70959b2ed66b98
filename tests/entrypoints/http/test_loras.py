"""LoRA adapters by name, and options by the names of vLLM-Omni's clients, over HTTP."""

from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from tests.support.api import error_of, frames_of

BODY: dict[str, Any] = {"prompt": "a dog", "num_frames": 5, "size": "64x64", "seed": 3}


def frames(http: httpx.Client, **fields: Any) -> bytes:
    answer = http.post("/v1/videos/sync", json=BODY | fields)
    assert answer.status_code == 200, answer.text
    return frames_of(answer.content).tobytes()


@pytest.mark.parametrize(
    "fields",
    [
        {"lora": {"name": "style", "scale": 2.0}},
        {"lora": {"lora_name": "style", "lora_scale": 2.0, "lora_int_id": 7}},
        {"lora": {"adapter": "style"}, "lora_scale": 2.0},
        {"model": "style", "lora_scale": 2.0},
    ],
)
def test_every_form_of_an_adapter_makes_the_same_video(
    http: httpx.Client, fields: dict[str, Any]
) -> None:
    styled = frames(http, lora="style", lora_scale=2.0)
    assert frames(http, **fields) == styled
    assert styled != frames(http)


def test_options_are_accepted_by_the_names_of_vllm_omni(http: httpx.Client) -> None:
    recipe = {
        "is_enable_stage2": True,
        "pyramid_num_stages": 3,
        "pyramid_num_inference_steps_list": [1, 1, 1],
        "is_amplify_first_chunk": True,
        "use_cfg_zero_star": True,
    }
    ours = frames(http, steps=[1, 1, 1], amplify_first_chunk=True)
    assert frames(http, extra_params=recipe) == ours
    form = {name: str(value) for name, value in BODY.items()}
    form["extra_params"] = (
        '{"pyramid_num_inference_steps_list": [1, 1, 1], "amplify_first_chunk": 1}'
    )
    answer = http.post("/v1/videos/sync", data=form)
    assert frames_of(answer.content).tobytes() == ours


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"lora": {"scale": 1}}, "lora", "expected `name`"),
        ({"lora": {"name": "style", "path": "/etc"}}, "lora.path", "unknown field `path`"),
        ({"model": "style", "lora": "other"}, "lora", "send only one of them"),
        ({"lora": {"name": "style", "scale": 2}, "lora_scale": 3}, "lora_scale", "3.0 and 2.0"),
        ({"extra_params": {"other": 1}}, "extra_params.other", "unknown option 'other'"),
        (
            {"extra_params": {"pyramid_num_inference_step_list": [1]}},
            "extra_params.pyramid_num_inference_step_list",
            "did you mean pyramid_num_inference_steps_list?",
        ),
        (
            {"extra_params": {"is_amplify_first_chunks": True}},
            "extra_params.is_amplify_first_chunks",
            "did you mean is_amplify_first_chunk?",
        ),
        ({"extra_params": {"prompt": "x"}}, "extra_params.prompt", "unknown option 'prompt'"),
        ({"extra_params": {"zero_steps": "x"}}, "extra_params.zero_steps", "got zero_steps 'x'"),
        (
            {"extra_params": {"steps": [1, 1, 1]}, "steps": [2, 2, 2]},
            "steps",
            "two values for steps",
        ),
        (
            {"extra_params": {"pyramid_num_stages": 2}},
            "extra_params.pyramid_num_stages",
            "expected 3",
        ),
        ({"extra_params": [1]}, "extra_params", "expected `object"),
    ],
)
def test_conflicts_and_unknown_names_are_refused(
    http: httpx.Client, fields: dict[str, Any], param: str, message: str
) -> None:
    answer = http.post("/v1/videos", json=BODY | fields)
    error = error_of(answer)
    assert (answer.status_code, error["param"]) == (400, param), error
    assert message in error["message"]


def test_adapters_are_listed_as_vllm_lists_them(http: httpx.Client, style: Path) -> None:
    models = {model["id"]: model for model in http.get("/v1/models").json()["data"]}
    assert models.keys() == {"nano", "style"}
    assert (models["style"]["root"], models["style"]["parent"]) == ("style", "nano")
    assert models["nano"]["parent"] is None
    assert http.get("/v1/models/style").json() == models["style"]
    assert str(style) not in http.get("/v1/models").text
