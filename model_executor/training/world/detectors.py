"""Analytic detectors: what frames of the world show, from their pixels alone."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from helios_serve.model_executor.training.world.palette import (
    BACKGROUNDS,
    COLOURS,
    MOTIONS,
    SIZES,
    background_rows,
)
from helios_serve.model_executor.training.world.renderer import coverage, offsets
from helios_serve.model_executor.training.world.scene import Scene, Thing

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]

BACKGROUND_TOLERANCE = 48.0
"""RGB distance up to which a pixel counts as background: half of the smallest contrast."""
COLOUR_TOLERANCE = 60.0
"""RGB distance from a colour that is looked for. The edge of another object may come near it, as
blue over a field does to black, but only in a few pixels."""
MIN_AREA, MAX_AREA = 60, 1150
"""Pixels of an object: a small triangle has about 260, a large ball 800."""
COMPACT = (0.13, 0.26)
"""Spread of an object's pixels (variance over area): 0.159 for a disc, 0.192 for a triangle."""
FRAMES_APART = 8
"""Motion is measured over this many frames: the codec freezes it within groups of four."""
FILLED = {"ball": np.pi / 4, "square": 0.88**2, "triangle": 0.64**2 * 3**1.5 / 4}
"""The area of each shape over its squared side."""
LEAST_OVERLAP = 0.7
"""Overlap with the picture of a shape below which an object has none. True objects have 0.97 or
more, and 0.77 or more once the VAE has encoded and decoded them; a square has 0.83 with a ball."""
STILL_BELOW = 0.5
"""Pixels per frame below which an object counts as still."""


class Sighting(NamedTuple):
    """The objects of one frame: `centre` is (x, y) in pixels, `mask` their pixels."""

    centre: tuple[float, float]
    mask: Mask
    is_one: bool


class Detection(NamedTuple):
    """What a video shows. Names are None where nothing was found.

    `one_object` is the share of frames with exactly one compact object. `speed` is in pixels a
    frame.
    """

    background: str | None
    colour: str | None
    shape: str | None
    size: str | None
    motion: str | None
    speed: float
    one_object: float

    def as_scene(self) -> Scene | None:
        """Return the scene with the one object that was found, or None."""
        names = (self.colour, self.shape, self.size, self.motion)
        if self.background is None or any(name is None for name in names):
            return None
        return Scene((Thing(*(str(name) for name in names)),), self.background)


def detect(video: NDArray[np.uint8], *, colour: str | None = None) -> Detection:
    """Detect the background and the object of RGB frames (frames, height, width, 3).

    With `colour` only objects of that colour are seen: use it for scenes with two objects.
    """
    frames = video.astype(np.float32)
    background = find_background(frames)
    rows = background_rows(background, frames.shape[1])
    sightings = [sight(frame, rows, colour) for frame in frames]
    seen = [sighting for sighting in sightings if sighting is not None]
    whole = [sighting for sighting in seen if sighting.is_one]
    share = len(whole) / len(frames)
    if not seen:
        return Detection(background, None, None, None, None, 0.0, 0.0)
    pairs = paired(frames, sightings)
    name = most_common([find_colour(frame, spot) for frame, spot in pairs])
    if not whole:
        return Detection(background, name, None, None, None, 0.0, share)
    covers = [covered(frame, rows, name) * spot.mask for frame, spot in pairs if spot.is_one]
    shape = most_common([find_shape(cover) for cover in covers]) or None
    size = shape and find_size(shape, float(np.median([cover.sum() for cover in covers])))
    motion, speed = find_motion(sightings, frames.shape[1:3])
    return Detection(background, name, shape, size, motion, speed, share)


def paired(frames: Floats, sightings: list[Sighting | None]) -> list[tuple[Floats, Sighting]]:
    return [
        (frame, sighting)
        for frame, sighting in zip(frames, sightings, strict=True)
        if sighting is not None
    ]


def find_background(frames: Floats) -> str:
    """Return the background whose rows are nearest to the median colour of the frames' rows."""
    seen = np.median(frames, axis=(0, 2))
    distances = {
        name: float(np.abs(background_rows(name, len(seen)) - seen).mean()) for name in BACKGROUNDS
    }
    return min(distances, key=lambda name: distances[name])


def sight(frame: Floats, rows: Floats, colour: str | None) -> Sighting | None:
    """Find what stands out from the background in a frame; None if too little does."""
    mask = np.linalg.norm(frame - rows[:, None], axis=2) > BACKGROUND_TOLERANCE
    if colour is not None:
        mask &= np.linalg.norm(frame - np.array(COLOURS[colour]), axis=2) < COLOUR_TOLERANCE
    area = int(mask.sum())
    if area < MIN_AREA:
        return None
    ys, xs = np.nonzero(mask)
    x, spread_x = circular(xs, mask.shape[1])
    y, spread_y = circular(ys, mask.shape[0])
    compact = COMPACT[0] <= (spread_x + spread_y) / area <= COMPACT[1]
    return Sighting((x, y), mask, compact and area <= MAX_AREA)


def circular(
    places: NDArray[np.int64], length: int, weights: Floats | None = None
) -> tuple[float, float]:
    """Return the mean and variance of places on a circle, each with its weight."""
    angles = places * (2 * np.pi / length)
    turns = np.exp(1j * angles) * (1.0 if weights is None else weights)
    mean = float(np.angle(turns.sum()) * length / (2 * np.pi)) % length
    away = (places - mean + length / 2) % length - length / 2
    # The circular mean of a lopsided shape is slightly off its centroid.
    shift = float(np.average(away, weights=weights))
    return (mean + shift) % length, float(np.average(np.square(away - shift), weights=weights))


def find_colour(frame: Floats, sighting: Sighting) -> str:
    """Return the colour of most of an object's pixels."""
    seen = frame[sighting.mask]
    palette = np.array(list(COLOURS.values()), dtype=np.float32)
    nearest = np.linalg.norm(seen[:, None] - palette, axis=2).argmin(axis=1)
    return list(COLOURS)[int(np.bincount(nearest).argmax())]


def covered(frame: Floats, rows: Floats, colour: str) -> Floats:
    """Return how much of each pixel an object of a colour covers, 0 to 1."""
    away = np.array(COLOURS[colour], dtype=np.float32) - rows[:, None]
    share = ((frame - rows[:, None]) * away).sum(axis=2) / np.square(away).sum(axis=2)
    cover: Floats = np.clip(share, 0, 1)
    return cover


def find_shape(cover: Floats) -> str:
    """Return the shape whose picture, of the same area and centre, overlaps most with an object.

    `cover` is how much of each pixel it covers. Returns "" if no shape overlaps enough.
    """
    ys, xs = np.indices(cover.shape)
    x, y = (
        circular(places.ravel(), length, cover.ravel())[0]
        for places, length in ((xs, cover.shape[1]), (ys, cover.shape[0]))
    )
    right = offsets(np.array([x], dtype=np.float32), cover.shape[1])
    down = offsets(np.array([y], dtype=np.float32), cover.shape[0])[0][:, None]
    overlaps = {}
    for shape, filled in FILLED.items():
        picture = coverage(shape, float(np.sqrt(cover.sum() / filled)), right, down)
        common, either = np.minimum(cover, picture), np.maximum(cover, picture)
        overlaps[shape] = float(common.sum() / max(either.sum(), 1.0))
    best = max(overlaps, key=lambda shape: overlaps[shape])
    return best if overlaps[best] >= LEAST_OVERLAP else ""


def find_size(shape: str, area: float) -> str:
    """Return the size whose object of that shape has the nearest area."""
    side = np.sqrt(area / FILLED[shape])
    return min(SIZES, key=lambda name: abs(SIZES[name] - side))


def find_motion(
    sightings: list[Sighting | None], size: tuple[int, int]
) -> tuple[str | None, float]:
    """Return the direction and speed of the object, over 8 frames; None if it is rarely seen."""
    height, width = size
    moves = []
    for before, after in zip(sightings, sightings[FRAMES_APART:], strict=False):
        if before is None or after is None or not (before.is_one and after.is_one):
            continue
        step = np.subtract(after.centre, before.centre)
        round_trip = np.array([width, height])
        moves.append((step + round_trip / 2) % round_trip - round_trip / 2)
    if not moves:
        return None, 0.0
    x, y = np.median(np.array(moves), axis=0) / FRAMES_APART
    speed = float(np.hypot(x, y))
    if speed < STILL_BELOW:
        return "still", speed
    along = (int(np.sign(x)), 0) if abs(x) > abs(y) else (0, int(np.sign(y)))
    return next(name for name, way in MOTIONS.items() if way == along), speed


def most_common(names: list[str]) -> str:
    return max(sorted(set(names)), key=names.count)
