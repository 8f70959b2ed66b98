"""Captions of scenes: a small grammar with paraphrases, and its reverse."""

from collections.abc import Mapping, Sequence

from numpy.random import Generator

from helios_serve.model_executor.training.world.palette import (
    BACKGROUND_WORDS,
    COLOURS,
    JOINING_WORDS,
    MOTION_WORDS,
    MOVING_VERBS,
    RESTING_VERBS,
    SHAPE_WORDS,
    SIZE_WORDS,
)
from helios_serve.model_executor.training.world.scene import Scene, Thing, pick


def write_caption(rng: Generator, scene: Scene) -> str:
    """Write one of the many captions of a scene.

    Orders: "a red ball moves right over the sand", "on the sand a red ball moves right".
    """
    place = f"{pick(rng, JOINING_WORDS)} {pick(rng, BACKGROUND_WORDS[scene.background])}"
    objects = " and ".join(describe_thing(rng, thing) for thing in scene.things)
    if rng.random() < 0.2:
        return f"{place} {objects}"
    return f"{objects} {place}"


def describe_thing(rng: Generator, thing: Thing) -> str:
    words = [
        pick(rng, ("a", "the")),
        pick(rng, SIZE_WORDS[thing.size]),
        thing.colour,
        pick(rng, SHAPE_WORDS[thing.shape]),
        pick(rng, RESTING_VERBS if thing.motion == "still" else MOVING_VERBS),
        pick(rng, MOTION_WORDS[thing.motion]),
    ]
    return " ".join(filter(None, words))


def read_caption(caption: str) -> Scene:
    """Return the scene of a caption. Raises ValueError for one that is not of the grammar."""
    words = caption.split()
    (background,) = set(named(words, BACKGROUND_WORDS))
    colours = [word for word in words if word in COLOURS]
    shapes = named(words, SHAPE_WORDS)
    motions = named(words, MOTION_WORDS)
    if not len(colours) == len(shapes) == len(motions) > 0:
        raise ValueError(f"got caption {caption!r}, expected a colour, shape and motion per object")
    sizes = ["medium"] * len(colours)
    for name in ("small", "large"):
        for index, word in enumerate(words):
            if word in SIZE_WORDS[name]:
                sizes[sum(earlier in COLOURS for earlier in words[:index])] = name
    things = zip(colours, shapes, sizes, motions, strict=True)
    return Scene(tuple(Thing(*thing) for thing in things), background)


def named(words: Sequence[str], table: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the names in `table` that `words` mention, by the last word of each wording."""
    by_word: dict[str, str] = {}
    for name, phrases in table.items():
        for phrase in phrases:
            by_word.setdefault(phrase.split()[-1], name)
    if table is BACKGROUND_WORDS and "night" in words:  # "a night sky" is the night
        return ["night"]
    return [by_word[word] for word in words if word in by_word]
