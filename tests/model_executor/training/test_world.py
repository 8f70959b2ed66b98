"""Scenes, captions, pictures and detectors, each against the others."""

from itertools import product

import numpy as np
import pytest

from helios_serve.model_executor.training.world.captions import read_caption, write_caption
from helios_serve.model_executor.training.world.detectors import detect
from helios_serve.model_executor.training.world.palette import (
    COLOURS,
    MOTIONS,
    SHAPE_WORDS,
    SIZES,
    SPEED,
    background_rows,
    visible_pairs,
    words,
)
from helios_serve.model_executor.training.world.renderer import render
from helios_serve.model_executor.training.world.scene import (
    Clip,
    Grammar,
    Scene,
    Thing,
    draw_clip,
    draw_scene,
)

SIZE = (64, 64)
LOOKS = [(*pair, shape) for pair, shape in product(visible_pairs(), SHAPE_WORDS)]


@pytest.mark.parametrize(("colour", "background", "shape"), LOOKS)
def test_what_is_rendered_is_detected(colour: str, background: str, shape: str) -> None:
    """Every color, background and shape, with each size and each motion at least once."""
    index = LOOKS.index((colour, background, shape))
    size, motion = list(SIZES)[index % 3], list(MOTIONS)[index % 5]
    scene = Scene((Thing(colour, shape, size, motion),), background)
    found = detect(render(Clip((scene,), ((index * 7.0 % 64, index * 3.0 % 64),)), 17, SIZE))
    assert found.as_scene() == scene
    assert found.one_object == 1.0
    assert found.speed == pytest.approx(0 if motion == "still" else SPEED, abs=0.05)


def test_a_damaged_picture_is_not_taken_for_the_scene() -> None:
    """The detector must be able to fail."""
    scene = Scene((Thing("red", "ball", "large", "right"),), "field")
    video = render(Clip((scene,), ((10.0, 30.0),)), 9, SIZE)
    assert detect(video[:, :, ::-1]).motion == "left"
    assert detect(np.repeat(video[:1], 9, axis=0)).motion == "still"
    assert detect(video[..., [2, 1, 0]]).colour == "blue"
    empty = render(Clip((scene,), ((10.0, 30.0),)), 1, SIZE)
    empty[:] = empty[:, :, 40:41]  # a column without the ball
    assert detect(empty).colour is None
    rows = background_rows("field", 64)[:, None].round()
    doubled = np.where(video == rows, np.roll(video, 30, axis=2), video)
    assert detect(doubled).one_object < 0.5


def test_two_objects_keep_apart_and_are_detected_by_colour() -> None:
    rng = np.random.default_rng(0)
    for _ in range(12):
        clip = draw_clip(rng, Grammar(two_things=1.0), chunks=1, size=SIZE)
        video = render(clip, 33, SIZE)
        for thing in clip.scenes[0].things:
            found = detect(video, colour=thing.colour)
            assert (found.colour, found.motion) == (thing.colour, thing.motion)
            assert found.one_object == 1.0


def test_a_switch_changes_the_scene_at_a_chunk_edge_and_keeps_places() -> None:
    rng = np.random.default_rng(1)
    grammar = Grammar(switches=1.0, still=0.0)
    for _ in range(8):
        clip = draw_clip(rng, grammar, chunks=2, size=SIZE)
        before, after = clip.scenes
        assert before != after
        video = render(clip, 66, SIZE)
        assert detect(video[:33]).as_scene() == before
        assert detect(video[33:]).as_scene() == after
        centres = clip.centres(66)
        assert np.abs(np.diff(centres, axis=0)).max() == SPEED


def test_captions_say_what_the_scene_is() -> None:
    rng = np.random.default_rng(2)
    grammar = Grammar(two_things=0.3)
    texts = set()
    for _ in range(400):
        scene = draw_scene(rng, grammar, held_out=bool(rng.random() < 0.5))
        caption = write_caption(rng, scene)
        assert read_caption(caption) == scene
        assert set(caption.split()) <= words()
        texts.add(caption)
    assert len(texts) > 390


def test_some_combinations_are_held_out() -> None:
    rng = np.random.default_rng(3)
    trained = [draw_scene(rng, Grammar(), held_out=False) for _ in range(200)]
    held = [draw_scene(rng, Grammar(), held_out=True) for _ in range(200)]
    assert not set(trained) & set(held)
    looks = [
        Scene((Thing(colour, shape, "small", motion),), background)
        for (colour, background), shape, motion in product(visible_pairs(), SHAPE_WORDS, MOTIONS)
    ]
    share = np.mean([scene.is_held_out for scene in looks])
    assert 0.07 < share < 0.16


def test_a_clip_depends_on_its_seed_alone() -> None:
    clips = [draw_clip(np.random.default_rng(7), Grammar(), chunks=4, size=SIZE) for _ in range(2)]
    assert clips[0] == clips[1]
    other = draw_clip(np.random.default_rng(8), Grammar(), chunks=4, size=SIZE)
    assert other != clips[0]


@pytest.mark.parametrize("things", [0.0, 1.0])
def test_objects_start_on_the_grid(things: float) -> None:
    rng = np.random.default_rng(4)
    grammar = Grammar(grid=8, two_things=things)
    starts = {
        place
        for _ in range(60)
        for start in draw_clip(rng, grammar, chunks=1, size=SIZE).starts
        for place in start
    }
    assert starts == set(range(0, 64, 8))


@pytest.mark.parametrize("shape", SHAPE_WORDS)
def test_a_shape_is_recognized_through_blur(shape: str) -> None:
    """As a codec leaves it: corners are rounded, edges soft."""
    scene = Scene((Thing("purple", shape, "small", "right"),), "field")
    video = render(Clip((scene,), ((16.0, 60.0),)), 9, SIZE).astype(float)
    for axis in (1, 2, 1, 2):
        video = (np.roll(video, 1, axis) + 2 * video + np.roll(video, -1, axis)) / 4
    assert detect(video.round().astype(np.uint8)).shape == shape


def test_an_object_without_one_of_the_shapes_has_none() -> None:
    """A cross is as compact as a triangle is."""
    video = np.repeat(background_rows("field", 64)[None, :, None], 9, axis=0).repeat(64, axis=2)
    video[:, 20:44, 28:36] = video[:, 28:36, 20:44] = COLOURS["red"]
    found = detect(video.round().astype(np.uint8))
    assert (found.colour, found.motion, found.one_object) == ("red", "still", 1.0)
    assert found.shape is None
    assert found.size is None
