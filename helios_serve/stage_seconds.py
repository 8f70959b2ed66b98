"""The time that a video spent in each stage."""

from typing import NamedTuple


class StageSeconds(NamedTuple):
    """Seconds of a video, or of one chunk of it.

    - `queue`: waiting for its first denoise step, without the time of encoding.
    - `encode`: encoding of prompts and references, `decode`: decoding of latents and encoding of
      frames; of the worker that did it.
    - `denoise`: the video's share of the denoise steps that it was part of.
    """

    queue: float = 0.0
    encode: float = 0.0
    denoise: float = 0.0
    decode: float = 0.0

    @property
    def on_workers(self) -> float:
        """The seconds that workers spent."""
        return self.encode + self.denoise + self.decode


NOTHING_SPENT = StageSeconds()
