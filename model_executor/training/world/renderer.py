"""Renders clips: antialiased shapes over a background, on a torus."""

import numpy as np
from numpy.typing import NDArray

from helios_serve.model_executor.training.world.palette import COLOURS, SIZES, background_rows
from helios_serve.model_executor.training.world.scene import Clip

Floats = NDArray[np.float32]
Frames = NDArray[np.uint8]


def render(clip: Clip, frames: int, size: tuple[int, int]) -> Frames:
    """Render the first `frames` of a clip: RGB (frames, height, width, 3)."""
    height, width = size
    centres = clip.centres(frames)
    rows = {scene.background: background_rows(scene.background, height) for scene in clip.scenes}
    video = np.stack([rows[clip.scene_at(frame).background] for frame in range(frames)])
    video = np.repeat(video[:, :, None], width, axis=2)
    for index in range(centres.shape[1]):
        right = offsets(centres[:, index, 0], width)[:, None, :]
        down = offsets(centres[:, index, 1], height)[:, :, None]
        for thing in dict.fromkeys(scene.things[index] for scene in clip.scenes):
            shown = [clip.scene_at(frame).things[index] == thing for frame in range(frames)]
            side = SIZES[thing.size]
            cover = coverage(thing.shape, side, right[shown], down[shown])[..., None]
            colour = np.array(COLOURS[thing.colour], dtype=np.float32)
            video[shown] += cover * (colour - video[shown])
    return np.round(video).astype(np.uint8)


def offsets(centres: Floats, length: int) -> Floats:
    """Return the distance of each pixel from each centre, the short way round: (frames, length)."""
    distance = np.arange(length, dtype=np.float32) - centres[:, None]
    return (distance + length / 2) % length - length / 2


def coverage(shape: str, side: float, right: Floats, down: Floats) -> Floats:
    """Return how much of each pixel an object covers, 0 to 1."""
    covered: Floats = np.clip(0.5 - distance(shape, side, right, down), 0, 1)
    return covered


def distance(shape: str, side: float, right: Floats, down: Floats) -> Floats:
    """Return the signed distance to the object's edge in pixels, negative inside."""
    across = np.abs(right)
    if shape == "ball":
        return np.hypot(right, down) - np.float32(side / 2)
    if shape == "square":
        return np.maximum(across, np.abs(down)) - np.float32(0.44 * side)
    # An equilateral triangle that points up, with its corners on a circle.
    radius = np.float32(0.64 * side)
    half_height = radius / 2
    slanted = np.float32(3**0.5 / 2) * across - down / 2
    return np.maximum(down, slanted) - half_height
