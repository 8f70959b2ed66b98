"""Options of realtime sessions."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Pacing = Literal["reader", "media"]
"""What a session waits for: chunks that were sent, or chunks that a viewer has seen."""


class RealtimeOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Fields of `session.start` in addition to those of a video."""

    format: Annotated[
        Literal["m4s"], Meta(description="Chunks are segments of a fragmented MP4.")
    ] = "m4s"
    max_lead_chunks: Annotated[
        int,
        Meta(
            ge=1,
            le=32,
            description="Number of chunks that are generated ahead of those that `pacing` counts. "
            "With 2, one chunk is decoded while the next one is denoised. A new prompt takes "
            "effect after them.",
        ),
    ] = 2
    pacing: Annotated[
        Pacing,
        Meta(
            description="reader: generate ahead of the chunks that were sent, as fast as the "
            "client reads them; media: generate ahead of what a viewer has seen who plays the "
            "video from the first chunk on, so that a new prompt is seen soon."
        ),
    ] = "reader"
