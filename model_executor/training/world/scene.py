"""Scenes and clips: what a video of the world shows, drawn at random and from names alone."""

import hashlib

import msgspec
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from helios_serve.model_config import CHUNK_FRAMES
from helios_serve.model_executor.training.world.palette import (
    MOTIONS,
    SHAPE_WORDS,
    SIZES,
    SPEED,
    visible_pairs,
)

HELD_OUT_SHARE = 9
"""One of this many combinations is never trained on."""


class Thing(msgspec.Struct, frozen=True):
    """An object of a scene."""

    colour: str
    shape: str
    size: str
    motion: str


class Scene(msgspec.Struct, frozen=True):
    """One or two objects and a background."""

    things: tuple[Thing, ...]
    background: str

    @property
    def is_held_out(self) -> bool:
        """Whether the scene is for checks only. Sizes do not count: they are drawn freely."""
        names = [self.background]
        for thing in self.things:
            names += [thing.colour, thing.shape, thing.motion]
        digest = hashlib.sha256(" ".join(names).encode()).digest()
        return digest[0] * 256 + digest[1] < 65536 // HELD_OUT_SHARE


class Grammar(msgspec.Struct, frozen=True, kw_only=True):
    """How scenes are drawn.

    - `still`: the share of objects that do not move.
    - `sizes`: the sizes that occur.
    - `two_things`: the share of scenes with two objects.
    - `switches`: the share of clips whose scene changes at a chunk edge.
    - `grid`: objects start at multiples of so many pixels. With 8, the distance of latent pixels,
      there are few ways in which an object and the latent pixels meet, and few to learn.
    """

    still: float = 0.1
    sizes: tuple[str, ...] = ("small", "medium", "large")
    two_things: float = 0.0
    switches: float = 0.15
    grid: int = 1


class Clip(msgspec.Struct, frozen=True):
    """A video: the scene of each chunk, and where its objects start.

    `starts` holds the (x, y) of each object's centre in frame 0, in pixels. Objects keep their
    places when the scene changes. Frames wrap round at all edges.
    """

    scenes: tuple[Scene, ...]
    starts: tuple[tuple[float, float], ...]

    def centres(self, frames: int) -> NDArray[np.float32]:
        """Return the centre of each object in each frame, before wrapping: (frames, objects, 2)."""
        velocity = np.array(
            [
                [MOTIONS[thing.motion] for thing in self.scene_at(frame).things]
                for frame in range(frames)
            ],
            dtype=np.float32,
        )
        steps = np.cumsum(velocity[1:] * SPEED, axis=0)
        moved = np.concatenate([np.zeros_like(velocity[:1]), steps])
        centres: NDArray[np.float32] = np.array(self.starts, dtype=np.float32) + moved
        return centres

    def scene_at(self, frame: int) -> Scene:
        """Return the scene of a frame; the last one has no end."""
        return self.scenes[min(frame // CHUNK_FRAMES, len(self.scenes) - 1)]


def draw_scene(rng: Generator, grammar: Grammar, *, held_out: bool, things: int = 0) -> Scene:
    """Draw a scene that is held out, or one that is not. `things` of 0 draws their number too."""
    count = things or 1 + int(rng.random() < grammar.two_things)
    while True:
        scene = draw_any_scene(rng, grammar, count)
        if scene.is_held_out == held_out:
            return scene


def draw_any_scene(rng: Generator, grammar: Grammar, count: int) -> Scene:
    pairs = visible_pairs()
    colour, background = pairs[rng.integers(len(pairs))]
    colours = [colour]
    if count > 1:
        others = [c for c, b in pairs if b == background and c != colour]
        colours.append(others[rng.integers(len(others))])
    along_x = rng.random() < 0.5
    things = []
    for name in colours:
        # Two objects keep to lanes of their own, so that they never meet.
        if rng.random() < grammar.still:
            motion = "still"
        elif count > 1:
            motion = pick(rng, ("right", "left") if along_x else ("up", "down"))
        else:
            motion = pick(rng, ("right", "left", "up", "down"))
        shape = pick(rng, tuple(SHAPE_WORDS))
        size = pick(rng, grammar.sizes) if count == 1 else "small"
        things.append(Thing(name, shape, size, motion))
    return Scene(tuple(things), background)


def draw_clip(
    rng: Generator, grammar: Grammar, *, chunks: int, size: tuple[int, int], held_out: bool = False
) -> Clip:
    """Draw a clip for frames of `size` (height, width). One switch at most."""
    first = draw_scene(rng, grammar, held_out=held_out)
    scenes = [first] * chunks
    if chunks > 1 and rng.random() < grammar.switches:
        at = int(rng.integers(1, chunks))
        other = switched(rng, grammar, first, held_out=held_out)
        scenes[at:] = [other] * (chunks - at)
    return Clip(tuple(scenes), draw_starts(rng, grammar, first, size))


def switched(rng: Generator, grammar: Grammar, scene: Scene, *, held_out: bool) -> Scene:
    """Draw the scene after a switch: everything may change but the number of objects."""
    while True:
        other = draw_scene(rng, grammar, held_out=held_out, things=len(scene.things))
        if other != scene and (len(scene.things) == 1 or moves_along_x(other, scene)):
            return other


def moves_along_x(*scenes: Scene) -> bool:
    """Return whether no object of the scenes moves vertically, so that lanes are kept."""
    return all(MOTIONS[thing.motion][1] == 0 for scene in scenes for thing in scene.things)


def draw_starts(
    rng: Generator, grammar: Grammar, scene: Scene, size: tuple[int, int]
) -> tuple[tuple[float, float], ...]:
    """Draw a start position for one object; two objects start in the middle of their own lanes."""
    height, width = size

    def place(length: int) -> float:
        return float(grammar.grid * rng.integers(length // grammar.grid))

    if len(scene.things) == 1:
        return ((place(width), place(height)),)
    if moves_along_x(scene):
        return tuple((place(width), height * (0.25 + 0.5 * lane)) for lane in range(2))
    return tuple((width * (0.25 + 0.5 * lane), place(height)) for lane in range(2))


def pick(rng: Generator, names: tuple[str, ...]) -> str:
    return names[int(rng.integers(len(names)))]


def largest_side() -> int:
    """Return the side of the largest object in pixels."""
    return max(SIZES.values())
