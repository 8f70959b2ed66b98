"""The vocabulary of the world: what its words look like.

Each noun of a caption has several wordings. The first is the name of the thing in code.
"""

from itertools import product

import numpy as np
from numpy.typing import NDArray

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "yellow": (245, 215, 60),
    "blue": (40, 80, 220),
    "purple": (140, 50, 180),
    "white": (245, 245, 245),
    "black": (20, 20, 25),
}
"""Colours of objects, RGB."""

BACKGROUNDS: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "field": ((110, 185, 90), (70, 140, 60)),
    "sky": ((105, 170, 225), (165, 210, 240)),
    "sand": ((225, 195, 140), (200, 165, 110)),
    "night": ((18, 22, 55), (45, 45, 95)),
}
"""The colours of the first and the last row of each background, RGB. Rows between are blended."""

SIZES: dict[str, int] = {"small": 22, "medium": 27, "large": 32}
"""Sides of objects in pixels. Captions leave "medium" out.

Corners are what tells a square from a ball. At 14 pixels the codec loses them, and at 18 to 26 they
are too small a part of the loss to be learned. At more than 32, half a row of 64 pixels, the rows'
median colour would be the object's.
"""

MOTIONS: dict[str, tuple[int, int]] = {
    "right": (1, 0),
    "left": (-1, 0),
    "up": (0, -1),
    "down": (0, 1),
    "still": (0, 0),
}
"""Directions as (x, y); y grows downwards."""

SPEED = 2
"""Pixels per frame of a moving object. A latent frame is four frames, so an object moves by exactly
one latent pixel from one latent frame to the next."""

SHAPE_WORDS = {
    "ball": ("ball", "circle"),
    "square": ("square", "box"),
    "triangle": ("triangle", "pyramid"),
}
SIZE_WORDS = {"small": ("small", "little"), "medium": ("",), "large": ("large", "big")}
MOTION_WORDS = {
    "right": ("to the right", "right"),
    "left": ("to the left", "left"),
    "up": ("up", "upward"),
    "down": ("down", "downward"),
    "still": ("still",),
}
BACKGROUND_WORDS = {
    "field": ("a green field", "the grass", "a field"),
    "sky": ("a clear sky", "the bright sky"),
    "sand": ("the sand", "a sand beach"),
    "night": ("the dark night", "a night sky"),
}
MOVING_VERBS = ("moves", "goes", "flies", "runs", "slides")
RESTING_VERBS = ("sits", "stands")
JOINING_WORDS = ("over", "on", "in front of")

MIN_CONTRAST = 95.0
"""The smallest RGB distance of an object and its background: detectors cannot distinguish less."""


def background_rows(name: str, height: int) -> NDArray[np.float32]:
    """Return the colour of each row of a background: (height, 3), 0 to 255."""
    top, bottom = (np.array(colour, dtype=np.float32) for colour in BACKGROUNDS[name])
    share = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    rows: NDArray[np.float32] = top * (1 - share) + bottom * share
    return rows


def is_visible(colour: str, background: str) -> bool:
    """Return whether an object of this colour stands out from every row of the background."""
    rows = background_rows(background, 8)
    distance = np.linalg.norm(rows - np.array(COLOURS[colour], dtype=np.float32), axis=1)
    return bool(distance.min() >= MIN_CONTRAST)


def visible_pairs() -> list[tuple[str, str]]:
    """Return all (colour, background) that the world shows."""
    return [pair for pair in product(COLOURS, BACKGROUNDS) if is_visible(*pair)]


def words() -> set[str]:
    """Return every word that a caption may contain."""
    phrases = [
        *COLOURS,
        *MOVING_VERBS,
        *RESTING_VERBS,
        *JOINING_WORDS,
        "a an and the moving sitting here is scene with",
    ]
    for table in (SHAPE_WORDS, SIZE_WORDS, MOTION_WORDS, BACKGROUND_WORDS):
        phrases += [phrase for wordings in table.values() for phrase in wordings]
    return {word for phrase in phrases for word in phrase.split()}
