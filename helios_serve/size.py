"""Video sizes in pixels: parsing, validation and rounding to sizes that a checkpoint supports."""

import math
from collections.abc import Callable
from typing import Annotated, NamedTuple

import msgspec

from helios_serve.errors import InvalidRequestError
from helios_serve.model_config import HeliosConfig

MAX_SIDE = 4096
"""Largest width and height, in pixels."""
MIN_SHOWN_SIDE = 16
"""Smallest width and height of delivered frames, in pixels."""
SizeName = Annotated[str, msgspec.Meta(pattern="^[1-9][0-9]*x[1-9][0-9]*$")]
"""WIDTHxHEIGHT in pixels, such as `640x384`."""


class Size(NamedTuple):
    """Width and height of a video in pixels, in the order in which users write them."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


def parse_size(text: str) -> Size:
    """Parse WIDTHxHEIGHT; raises InvalidRequestError for any other text.

    `check_size` then checks whether a checkpoint supports the size.
    """
    try:
        width, height = text.lower().split("x")
        return Size(int(width), int(height))
    except ValueError as error:
        raise InvalidRequestError(
            f"got size {text!r}, expected WIDTHxHEIGHT in pixels, such as 640x384", param="size"
        ) from error


def nearest_size(
    width: int, height: int, config: HeliosConfig, rounded: Callable[[float], int] = round
) -> Size:
    """Return the supported size nearest to width x height; `rounded` rounds to a multiple."""
    step = config.size_multiple
    sides = (min(max(step, rounded(side / step) * step), MAX_SIDE) for side in (width, height))
    return Size(*sides)


def suggested_sizes(default: Size, config: HeliosConfig) -> list[Size]:
    """Return sizes for a menu: `default` first, then upright, square and smaller ones."""
    side = round(math.sqrt(default.width * default.height))
    shapes = (
        default,
        Size(default.height, default.width),
        Size(side, side),
        Size(default.width // 2, default.height // 2),
    )
    return list(dict.fromkeys(nearest_size(*shape, config) for shape in shapes))


def check_size(width: int, height: int, config: HeliosConfig) -> None:
    """Raise InvalidRequestError unless the checkpoint can generate this size."""
    step = config.size_multiple
    fits = all(side % step == 0 and step <= side <= MAX_SIDE for side in (width, height))
    if fits:
        return
    lower, upper = (
        nearest_size(width, height, config, rounded) for rounded in (math.floor, math.ceil)
    )
    nearest = " or ".join(map(str, dict.fromkeys((lower, upper))))
    raise InvalidRequestError(
        f"got size {width}x{height}, expected WIDTHxHEIGHT with both sides multiples of {step} "
        f"up to {MAX_SIDE} for a {config.variant} checkpoint, such as {nearest}",
        param="size",
    )


def check_shown_size(width: int, height: int) -> None:
    """Raise InvalidRequestError unless frames of this size can be encoded.

    Sides must be even: chroma has half the resolution (4:2:0).
    """
    if any(side % 2 or not MIN_SHOWN_SIDE <= side <= MAX_SIDE for side in (width, height)):
        raise InvalidRequestError(
            f"got size {width}x{height}, expected WIDTHxHEIGHT with even sides from "
            f"{MIN_SHOWN_SIDE} to {MAX_SIDE}",
            param="size",
        )
