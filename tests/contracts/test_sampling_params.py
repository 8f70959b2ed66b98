"""Requests: defaults, validation and error messages."""

from typing import Any

import pytest

from helios_serve.errors import InvalidRequestError
from helios_serve.model_config import HeliosConfig, SamplerConfig, TransformerConfig, Variant
from helios_serve.options.sampling import PromptSwitch, SamplingParams
from helios_serve.video_request import Frames, VideoRequest, prompt_weights


def config_of(variant: Variant) -> HeliosConfig:
    transformer = TransformerConfig(
        num_layers=1,
        num_attention_heads=1,
        attention_head_dim=12,
        ffn_dim=4,
        text_dim=4,
        rope_dim=(4, 4, 4),
    )
    scheduler = SamplerConfig(
        solver="dmd" if variant == "distilled" else "unipc", stages=1 if variant == "base" else 3
    )
    return HeliosConfig(variant=variant, transformer=transformer, scheduler=scheduler)


@pytest.mark.parametrize(
    ("variant", "steps", "guidance"),
    [("base", (50,), 5.0), ("mid", (20, 20, 20), 5.0), ("distilled", (2, 2, 2), 1.0)],
)
def test_defaults_are_the_published_ones(
    variant: Variant, steps: tuple[int, ...], guidance: float
) -> None:
    resolved = SamplingParams().resolve(config_of(variant))
    assert (resolved.steps, resolved.guidance_scale) == (steps, guidance)
    assert resolved.num_chunks == 3
    assert resolved.total_steps == 3 * sum(steps)


def test_an_amplified_first_chunk_takes_twice_the_steps() -> None:
    params = SamplingParams(amplify_first_chunk=True, steps=(1, 2, 3))
    resolved = params.resolve(config_of("distilled"))
    assert [resolved.stage_steps(chunk) for chunk in range(3)] == [(2, 4, 6), (1, 2, 3), (1, 2, 3)]
    assert resolved.total_steps == 12 + 6 + 6


@pytest.mark.parametrize(
    ("variant", "fields", "message"),
    [
        ("mid", {"width": 720, "height": 384}, "got size 720x384.* 704x384 or 768x384"),
        ("mid", {"width": 720, "height": 400}, "704x384 or 768x448"),
        ("base", {"width": 100, "height": 48}, "multiples of 16.* 96x48 or 112x48"),
        ("mid", {"width": 0}, "such as 64x384"),
        ("mid", {"height": 99999}, "such as 640x4096"),
        ("mid", {"num_frames": 0}, "got num_frames 0, expected 1 to 86400"),
        ("mid", {"num_frames": 10**6}, "got num_frames 1000000"),
        ("mid", {"fps": 0}, "got fps 0, expected 1 to 120"),
        ("mid", {"seed": -1}, "got seed -1"),
        ("mid", {"steps": (2, 2)}, r"got 2 step counts \(2,2\), expected 3 for a mid"),
        ("base", {"steps": (2, 2, 2)}, "expected 1 for a base"),
        ("mid", {"steps": (2, 0, 2)}, "got steps 0, expected 1 to 1000"),
        ("mid", {"num_inference_steps": 9}, "got num_inference_steps=9 with a mid"),
        ("distilled", {"guidance_scale": 5.0}, "got guidance_scale 5.0 with a distilled"),
        ("mid", {"guidance_scale": float("nan")}, "got guidance_scale nan, expected 0 to 100"),
        ("mid", {"amplify_first_chunk": True}, "got amplify_first_chunk with a mid"),
        ("mid", {"image_noise_sigma": (0.5, 0.1)}, "got image_noise_sigma 0.5,0.1"),
        ("mid", {"max_sequence_length": 513}, "got max_sequence_length 513, expected 1 to 512"),
        ("mid", {"switches": (PromptSwitch(3, "x"),)}, r"got prompt switches at chunks \[3\]"),
        ("mid", {"switches": (PromptSwitch(0, "x"),)}, "expected 1 to 2"),
        ("mid", {"switches": (PromptSwitch(2, "x"), PromptSwitch(1, "y"))}, "in ascending order"),
    ],
)
def test_bad_parameters_are_refused(variant: Variant, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        SamplingParams(**fields).resolve(config_of(variant))


def test_bad_media_are_refused() -> None:
    params = SamplingParams(width=64, height=64)
    image, small = Frames(b"", 1, 64, 64), Frames(b"", 33, 32, 64)
    for media, message in (
        ({"image": image, "video": image}, "both an image and a video"),
        ({"video": Frames(b"", 32, 64, 64)}, "got a video of 32 frames, expected at least 33"),
        ({"video": small}, "got video frames of 64x32, expected the video's 64x64"),
    ):
        request = VideoRequest(
            request_id="x",
            prompt="",
            params=params,
            image=media.get("image"),
            video=media.get("video"),
        )
        with pytest.raises(InvalidRequestError, match=message):
            request.check_inputs()


def test_text_that_cannot_be_sent_is_refused() -> None:
    cases: tuple[dict[str, Any], ...] = (
        {"prompt": "a \ud800 dog"},
        {"prompt": "a", "lora": "\udfff"},
    )
    for fields in cases:
        with pytest.raises(InvalidRequestError, match="got text with a lone surrogate"):
            VideoRequest(request_id="x", **fields).check_inputs()


def weights_at(params: SamplingParams, chunk: int) -> dict[str, float]:
    return {item.prompt: item.weight for item in prompt_weights("a", params, chunk)}


def test_a_switch_fades_over_its_chunks_and_stays() -> None:
    params = SamplingParams(switches=(PromptSwitch(2, "b"),))
    timeline = [weights_at(params, chunk) for chunk in range(6)]
    a, b = {"a": 1.0}, {"b": 1.0}
    assert timeline == [a, a, a, {"a": 0.5, "b": 0.5}, b, b]


def test_a_switch_during_a_switch_fades_from_the_newer_prompt() -> None:
    params = SamplingParams(switches=(PromptSwitch(1, "b"), PromptSwitch(3, "c")))
    assert weights_at(params, 2) == {"a": 0.5, "b": 0.5}
    assert weights_at(params, 3) == {"b": 1.0}
    assert weights_at(params, 4) == {"b": 0.5, "c": 0.5}
    assert weights_at(params, 5) == {"c": 1.0}


def test_a_switch_at_every_chunk_is_followed_one_chunk_late() -> None:
    switches = tuple(PromptSwitch(chunk, str(chunk)) for chunk in range(1, 2000))
    params = SamplingParams(switches=switches)
    assert [weights_at(params, chunk) for chunk in (1, 2, 1500)] == [
        {"a": 1.0},
        {"1": 1.0},
        {"1499": 1.0},
    ]


@pytest.mark.parametrize("transition", [0, 1])
def test_a_switch_without_transition_is_at_once(transition: int) -> None:
    params = SamplingParams(switches=(PromptSwitch(1, "b"),), transition_chunks=transition)
    assert [weights_at(params, chunk) for chunk in range(2)] == [{"a": 1.0}, {"b": 1.0}]


def test_a_switch_to_the_same_prompt_changes_nothing() -> None:
    params = SamplingParams(switches=(PromptSwitch(1, "a"),))
    assert [weights_at(params, chunk) for chunk in range(3)] == [{"a": 1.0}] * 3
