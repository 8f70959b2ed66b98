"""Shapes of a load: sizes, lengths and steps, and the mix in which they are drawn."""

from collections.abc import Sequence
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta

from helios_serve.errors import InvalidRequestError
from helios_serve.options.benchmarks import LoadOptions, Task, Tier

DEFAULT_FRAMES = 99


class Shape(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A kind of session. Fields that are None are the load's own."""

    width: int | None = None
    height: int | None = None
    num_frames: Annotated[int, Meta(ge=1)] | None = None
    fps: Annotated[int, Meta(ge=1, le=120)] | None = None
    steps: tuple[int, ...] | None = None
    task: Task | None = None
    tier: Tier | None = None
    weight: Annotated[float, Meta(gt=0)] = 1.0


class ShapeMix:
    """Draws shapes in proportion to their weights."""

    def __init__(self, shapes: Sequence[Shape]) -> None:
        self.shapes = tuple(shapes)
        weights = np.array([shape.weight for shape in shapes])
        self._shares = weights / weights.sum()

    @classmethod
    def of(cls, options: LoadOptions) -> "ShapeMix":
        """Build the mix from `--random-request-config`, or of the one shape that flags give.

        Raises InvalidRequestError for any other text.
        """
        if options.random_request_config is None:
            return cls([Shape()])
        try:
            shapes = msgspec.json.decode(options.random_request_config, type=list[Shape])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidRequestError(
                f"--random-request-config: {error}", param="random_request_config"
            ) from error
        if not shapes:
            raise InvalidRequestError(
                "got an empty --random-request-config, expected at least one shape",
                param="random_request_config",
            )
        return cls(shapes)

    def draw(self, random: np.random.Generator) -> Shape:
        return self.shapes[int(random.choice(len(self.shapes), p=self._shares))]
