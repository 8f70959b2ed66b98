"""Each part of Helios' recipe does what the paper says."""

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from helios_serve.model_config import CHUNK_FRAMES, Geometry
from helios_serve.model_executor.models.helios.conditioning import block_noise_factor
from helios_serve.model_executor.models.helios.embeddings import make_rope, rotary_axis
from helios_serve.model_executor.models.helios.schedule import stage_transition
from helios_serve.model_executor.models.nano.checkpoint import WEIGHTS
from helios_serve.model_executor.training.codec import Codec
from helios_serve.model_executor.training.dense import shifted_entries
from helios_serve.model_executor.training.export import CODEC_FILE
from helios_serve.model_executor.training.flow_stage import (
    encoded_backgrounds,
    near_objects,
    object_weights,
)
from helios_serve.model_executor.training.nano_model import NanoModel, variant_config
from helios_serve.model_executor.training.noising import (
    doubled,
    halved,
    noised,
    stage_endpoints,
    stage_ranges,
)
from helios_serve.model_executor.training.optimizer import (
    Optimizer,
    average_decay,
    orthogonalized,
    rate_scale,
)
from helios_serve.model_executor.training.recipe import (
    Ablation,
    Corruption,
    HistoryMix,
    tiny_recipe,
)
from helios_serve.model_executor.training.rollout import Rollout
from helios_serve.model_executor.training.windows import (
    ablated,
    corrupt_window,
    draw_samples,
    empty_window,
    full_window,
    window_patches,
)
from helios_serve.model_executor.training.world.renderer import render
from helios_serve.model_executor.training.world.scene import Clip, Scene, Thing


def numbered_clip(frames: int = 36) -> Tensor:
    """Return a clip whose latent frame i is filled with i + 1: (1, 16, frames, 8, 8)."""
    numbers = torch.arange(1.0, frames + 1).view(1, 1, -1, 1, 1)
    return numbers.expand(1, 16, frames, 8, 8)


def frames_in(window: Tensor) -> list[int]:
    """Return the numbers of a window's frames, the anchor first; 0 is an empty frame."""
    return [int(number) for number in window[0, 0, :, 0, 0]]


def drawn(history: HistoryMix, seed: int = 0) -> tuple[list[int], list[int]]:
    sample = draw_samples(np.random.default_rng(seed), numbered_clip(), history)
    return frames_in(sample.window), frames_in(sample.target)


# Unified history injection: the task follows from what the history holds.


def test_text_to_video_has_an_empty_history() -> None:
    window, target = drawn(HistoryMix(text_only=1.0, image=0.0))
    assert window == [0] * 20
    assert target[0] % 9 == 1


def test_image_to_video_has_one_frame_which_is_the_anchor_too() -> None:
    window, target = drawn(HistoryMix(text_only=0.0, image=1.0))
    assert window == [target[0]] + [0] * 18 + [target[0]]


@pytest.mark.parametrize("seed", range(6))
def test_a_continuation_has_the_last_19_frames_and_the_first(seed: int) -> None:
    window, target = drawn(HistoryMix(text_only=0.0, image=0.0, shortened=0.0), seed)
    before = list(range(1, target[0]))
    assert window == [1] + ([0] * 19 + before)[-19:]


def test_a_shortened_history_lacks_its_oldest_frames() -> None:
    lengths = set()
    for seed in range(12):
        window, target = drawn(HistoryMix(text_only=0.0, image=0.0, shortened=1.0), seed)
        present = [number for number in window[1:] if number]
        assert present == list(range(target[0] - len(present), target[0]))
        lengths.add(len(present))
    assert len(lengths) > 5


# Multi-term memory patchification.


def test_older_frames_take_fewer_tokens() -> None:
    """16 frames take 4 tokens, 2 frames 4, and the anchor and the last frame 16 each."""
    patches = window_patches(full_window(numbered_clip()))
    assert [part.shape[1] for part in patches] == [4, 4, 32]
    assert set(patches.long[0, 0].tolist()) == {18, 19, 20, 21}
    assert set(patches.mid.flatten().tolist()) == {34, 35}
    assert set(patches.short.flatten().tolist()) == {1, 36}


# Relative RoPE and the first-frame anchor.


def test_the_anchor_stays_and_positions_do_not_depend_on_the_chunk() -> None:
    """With the same window and noise, chunk 5 is generated as chunk 1 is."""
    recipe = tiny_recipe()
    model = NanoModel(recipe)
    config = variant_config("distilled", model.transformer.config)
    rollout = Rollout(model, config, Geometry(64, 64), seeds=[0], steps=(1, 1, 1))
    chunks = [rollout.next_chunk(["the red ball"]) for _ in range(4)]
    assert rollout.anchor is not None
    assert torch.equal(rollout.anchor, chunks[0][:, :, :1])
    assert torch.equal(rollout.window()[:, :, :1], rollout.anchor)
    late = Rollout(
        model,
        config,
        Geometry(64, 64),
        seeds=[9],
        steps=(1, 1, 1),
        past=rollout.past,
        anchor=rollout.anchor,
    )
    rollout.generators[0].manual_seed(9)
    captions = ["the red ball"]
    assert torch.equal(late.next_chunk(captions), rollout.next_chunk(captions))


# Ablations, which show what a part is for.


def test_an_ablation_empties_its_frames_only() -> None:
    window = full_window(numbered_clip())
    whole = frames_in(window)
    assert frames_in(ablated(window, "anchor")) == [0, *whole[1:]]
    assert frames_in(ablated(window, "long")) == [1] + [0] * 16 + whole[-3:]
    assert frames_in(ablated(window, "corrupt")) == frames_in(ablated(window, "none")) == whole


@pytest.mark.parametrize("ablation", ["anchor", "long", "rope"])
def test_a_rollout_does_without_what_its_model_did(ablation: Ablation) -> None:
    """The first chunk is the same, for its history is empty; later ones differ."""
    recipe = tiny_recipe()
    chunks = []
    for kind in ("none", ablation):
        model = NanoModel(msgspec.structs.replace(recipe, ablation=kind))
        shake(model)
        config = variant_config("distilled", model.transformer.config)
        rollout = Rollout(model, config, Geometry(64, 64), seeds=[0], steps=(1, 1, 1))
        chunks.append([rollout.next_chunk(["the red ball"]) for _ in range(4)])
    whole, without = chunks
    assert torch.equal(whole[0], without[0])
    assert not torch.allclose(whole[3], without[3], atol=1e-4)


def test_absolute_positions_are_those_of_a_longer_table() -> None:
    """Each sample has an offset of its own, and anchors stay at frame 0."""
    model = NanoModel(tiny_recipe())
    config = model.transformer.config
    rope = make_rope(config, Geometry(64, 64), 2, 3, torch.device("cpu"))
    moved = shifted_entries(config, rope.entries[None, None], [0, 27], 8, 32)
    assert torch.allclose(moved[0, 0], rope.entries, atol=1e-6)
    assert torch.equal(moved[1, 0, 8:24], rope.entries[8:24])
    frames = config.rope_dim[0] // 2
    expected = rotary_axis(60, config.rope_dim[0], config.rope_theta)
    assert torch.allclose(moved[1, 0, 40, :frames], expected[20 + 27], atol=1e-5)
    assert torch.allclose(moved[1, 0, 24, :frames], expected[19 + 27], atol=1e-5)
    assert torch.equal(moved[1, 0, :, frames:], rope.entries[:, frames:])


def shake(model: NanoModel) -> None:
    """Move all weights away from their initial values, at which residual branches are zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.transformer.parameters():
            scale = 0.3 * max(1, parameter.shape[-1]) ** -0.5
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


# Frame-Aware Corrupt.

SAVED = {"noise": 0.0, "exposure": 0.0, "blur": 0.0}


def corrupted(window: Tensor, **kinds: float) -> Tensor:
    corruption = Corruption(**(SAVED | {"clean": 0.0, "share": 1.0} | kinds))
    return corrupt_window(np.random.default_rng(0), window, corruption)


def random_window() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return full_window(torch.randn(4, 16, 12, 8, 8, generator=generator))


def test_empty_frames_stay_empty() -> None:
    window = random_window()
    damaged = corrupted(window, noise=0.3, exposure=0.3, blur=0.5)
    empty = window.abs().amax(dim=(1, 3, 4)) == 0
    assert empty.any()
    assert damaged.abs().amax(dim=(1, 3, 4))[empty].max() == 0
    assert torch.equal(corrupted(empty_window(window), noise=0.3), empty_window(window))


@pytest.mark.parametrize("kind", ["noise", "exposure", "blur"])
def test_each_frame_is_damaged_on_its_own(kind: str) -> None:
    window = random_window()
    change = (corrupted(window, **{kind: 0.4}) - window).square().mean(dim=(1, 3, 4)).sqrt()
    present = change[:, -12:]
    assert present.min() > 0
    assert present.std() > 0.2 * present.mean()


def test_exposure_scales_contrast_and_blur_smooths() -> None:
    window = random_window()
    exposed, blurred = corrupted(window, exposure=0.3), corrupted(window, blur=1.0)
    mean = window.mean(dim=1, keepdim=True)
    factors = ((exposed - mean) / (window - mean))[:, :, -1].flatten(1)
    assert torch.allclose(factors, factors[:, :1].expand_as(factors), atol=1e-2)
    assert (factors >= 0.7).all()
    assert (factors <= 1.3).all()
    rough = [(part[..., 1:] - part[..., :-1]).abs().mean() for part in (window, blurred)]
    assert rough[1] < 0.8 * rough[0]


def test_clean_samples_stay_as_they_are() -> None:
    window = random_window()
    corruption = Corruption(clean=1.0)
    assert torch.equal(corrupt_window(np.random.default_rng(0), window, corruption), window)


# The pyramid's three stages.

SCHEDULER = variant_config("mid", NanoModel(tiny_recipe()).transformer.config).scheduler
RANGES = stage_ranges(SCHEDULER)


def test_stages_start_and_end_where_the_paper_has_them() -> None:
    levels = [(item.start, item.end) for item in RANGES]
    expected = [(0.999, 0.666333), (0.79976, 0.333666), (0.500374, 0.0)]
    for got, wanted in zip(levels, expected, strict=True):
        assert got == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("stage", [1, 2])
def test_a_stage_starts_where_the_served_transition_leads(stage: int) -> None:
    """Upsampled end of a stage + block noise: the mean, variance and independence of its start."""
    signal, weight = stage_transition(SCHEDULER, stage)
    before, own = RANGES[stage - 1], RANGES[stage]
    assert signal * (1 - before.end) == pytest.approx(1 - own.start, abs=1e-6)
    factor = block_noise_factor(SCHEDULER.gamma).double()
    covariance = (signal * before.end) ** 2 + weight**2 * (factor @ factor.T)
    assert torch.allclose(covariance, own.start**2 * torch.eye(4).double(), atol=1e-5)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_the_flow_of_a_stage_leads_from_its_start_to_its_end(stage: int) -> None:
    generator = torch.Generator().manual_seed(stage)
    clean, noise = torch.randn(2, 2, 16, 9, 8, 8, generator=generator)
    ends = stage_endpoints(clean, noise, stage, RANGES)
    side = 2 << stage
    assert ends.start.shape == ends.end.shape == (2, 16, 9, side, side)
    made = noised(ends, torch.tensor([1.0, 0.25]), RANGES[stage])
    assert torch.allclose(made.latents[0], ends.start[0], atol=1e-5)
    assert torch.allclose(
        made.latents - made.flow,
        ends.end - made.flow * torch.tensor([0.0, 0.75]).view(2, 1, 1, 1, 1),
        atol=1e-5,
    )
    assert made.timesteps[0] == pytest.approx(RANGES[stage].high)
    if stage == 2:
        assert torch.equal(ends.end, clean)


def test_noise_keeps_its_variance_when_it_is_halved() -> None:
    noise = torch.randn(4, 16, 9, 16, 16, generator=torch.Generator().manual_seed(0))
    assert float((halved(noise) * 2).std()) == pytest.approx(1.0, abs=0.02)
    assert torch.equal(halved(doubled(noise)), noise)


# The optimizer.


def test_updates_are_orthogonalized() -> None:
    matrices = torch.randn(3, 24, 40, generator=torch.Generator().manual_seed(0))
    for batch in (matrices, matrices.transpose(1, 2)):
        values = torch.linalg.svdvals(orthogonalized(batch))
        assert values.min() > 0.5
        assert values.max() < 1.3


def test_the_optimizer_restores_its_state() -> None:
    models = [NanoModel(tiny_recipe()) for _ in range(2)]
    optimizers = [Optimizer(model, muon_rate=1e-2, adam_rate=1e-2) for model in models]

    def step(index: int, number: int) -> None:
        generator = torch.Generator().manual_seed(number)
        for parameter in models[index].parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizers[index].step(number, 1.0)

    step(0, 0)
    step(0, 1)
    tensors = {name: item.clone() for name, item in optimizers[0].tensors().items()}
    optimizers[1].restore(tensors)
    for number in (12, 13):
        step(0, number)
        step(1, number)
    first, second = optimizers[0].tensors(), optimizers[1].tensors()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_average_spans_the_last_tenth_of_the_steps() -> None:
    assert average_decay(0) == average_decay(8) == 0
    assert 1 / (1 - average_decay(999)) == pytest.approx(100)
    assert average_decay(10**6) == 0.999


def marks_of(shape: str, motion: str) -> Tensor:
    """Return what is near a large object in the middle of a frame, after one chunk."""
    scene = Scene((Thing("red", shape, "large", motion),), "field")
    frames = render(Clip((scene,), ((32.0, 32.0),)), CHUNK_FRAMES, (64, 64))
    codec = Codec(**load_file(WEIGHTS / CODEC_FILE))
    background = encoded_backgrounds(codec, 64)["field"]
    return near_objects(codec.encode(torch.from_numpy(frames))[None], background[None])


@pytest.mark.parametrize("motion", ["right", "up", "still"])
def test_objects_and_what_is_around_them_are_marked(motion: str) -> None:
    """The mark says where an object is and not which: it would draw one shape for another."""
    marks = marks_of("square", motion)
    assert marks.shape == (1, 1, 9, 8, 8)
    expected = torch.zeros(8, 8)
    expected[1:7, 1:7] = 1  # 28 pixels in the middle touch 4 x 4 latent pixels
    assert torch.equal(marks[0, 0, 0], expected)
    assert torch.equal(marks_of("ball", motion)[0, 0, 0], expected)


def test_objects_count_more_where_noise_is_low() -> None:
    marks = torch.zeros(2, 1, 9, 8, 8)
    marks[..., :4] = 1
    weights = object_weights(marks, 3.0, torch.tensor([0.0, 1.0]), 2, 3)
    assert weights.shape == (2, 16, 9, 8, 8)
    assert float(weights.mean()) == pytest.approx(1)
    assert float(weights[0, 0, 0, 0, 0] / weights[0, 0, 0, 0, 7]) == pytest.approx(4)
    assert float(weights[1, 0, 0, 0, 0] / weights[1, 0, 0, 0, 7]) == pytest.approx(1)
    assert object_weights(marks, 3.0, torch.zeros(2), 0, 3).shape == (2, 16, 9, 2, 2)


def test_the_learning_rate_warms_up_and_falls() -> None:
    scales = [rate_scale(index, 100, 10) for index in range(100)]
    assert scales[0] == pytest.approx(0.1)
    assert scales[30] == 1.0
    assert scales[-1] < 0.06
