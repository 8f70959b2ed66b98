"""A request for one video, and what a user may send with it."""

import math
from collections.abc import Iterator
from typing import Literal

import msgspec

from helios_serve.errors import InvalidRequestError
from helios_serve.model_config import CHUNK_FRAMES, HeliosConfig
from helios_serve.options.sampling import (
    MAX_FRAMES,
    PromptSwitch,
    ResolvedParams,
    SamplingParams,
    check_range,
)
from helios_serve.options.scheduling import DEFAULT_TENANT, ServiceTier
from helios_serve.size import Size, check_shown_size

MAX_TEXT = 32_768
"""Characters of a prompt; what models read of it is far less."""
MAX_MEDIA_BYTES = (1 << 32) - 1
Relation = Literal["remix", "extension", "edit", "continuation"]
"""How a video comes from another: the same under another prompt, the same and more, made from its
frames; a continuation is made from the end of a video whose state is not known."""
OutputKind = Literal["frames", "segment"]
"""Whether chunks are handed on as pixels or as segments of an MP4."""


class Frames(msgspec.Struct, frozen=True):
    """`count` RGB frames of height x width pixels: uint8, row major, frame after frame.

    Behind the first one, `skipped` more are left out, which nobody looks at.
    """

    data: bytes
    count: int
    height: int
    width: int
    skipped: int = 0


class VideoRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One video to make. At most one of `image` (I2V) and `video` (V2V) is given.

    Reference frames have the size of the video. `lora` is a local file or folder.
    `keep_input_latents` asks for the reference's noised latents, which diffusers returns in front
    of the video's own. With `max_lead_chunks` the video is made only so far ahead of its reader.
    Frames are scaled and cut to `shown_size`, pixels of width and height, if that is not the size
    that is sampled. None for `model` is the first one that is served. `parent` is the video that
    this one was made from, as its `relation` says. `fingerprint` tells a repetition of the same
    order from another one.
    """

    request_id: str
    prompt: str
    model: str | None = None
    params: SamplingParams = SamplingParams()
    image: Frames | None = None
    video: Frames | None = None
    lora: str | None = None
    lora_scale: float = 1.0
    keep_input_latents: bool = False
    tenant: str = DEFAULT_TENANT
    tier: ServiceTier = "default"
    output: OutputKind = "frames"
    shown_size: Size | None = None
    max_lead_chunks: int | None = None
    parent: str | None = None
    relation: Relation | None = None
    fingerprint: str | None = None

    @property
    def prompts(self) -> tuple[str, ...]:
        """What the video shows, from its beginning and from every switch on; each text once."""
        return tuple(dict.fromkeys((self.prompt, *self._switched())))

    @property
    def has_reference(self) -> bool:
        return self.image is not None or self.video is not None

    def without_media(self) -> "VideoRequest":
        """The request less its reference, for those who have no more use of it."""
        return msgspec.structs.replace(self, image=None, video=None) if self.has_reference else self

    def with_switch(self, switch: PromptSwitch) -> "VideoRequest":
        """One more prompt switch, in place of any that was meant for its chunk or a later one."""
        earlier = (item for item in self.params.switches if item.chunk < switch.chunk)
        params = msgspec.structs.replace(self.params, switches=(*earlier, switch))
        return msgspec.structs.replace(self, params=params)

    def resolve(self, config: HeliosConfig) -> ResolvedParams:
        """Check the whole request against `config` and fill in its defaults.

        Raises InvalidRequestError.
        """
        self.check_inputs()
        return self.params.resolve(config)

    def check_inputs(self) -> None:
        """Raise InvalidRequestError unless what comes beside the prompt can be used."""
        check_references(self.image, self.video)
        for text in (self.prompt, self.params.negative_prompt, self.lora or "", *self._switched()):
            check_text(text)
        for name, media in (("image", self.image), ("video", self.video)):
            if media is not None and len(media.data) > MAX_MEDIA_BYTES:
                raise InvalidRequestError(
                    f"got {len(media.data)} bytes of {name}, expected at most {MAX_MEDIA_BYTES}",
                    param=name,
                )
        if self.max_lead_chunks is not None:
            check_range("max_lead_chunks", self.max_lead_chunks, 1, MAX_FRAMES)
        if not math.isfinite(self.lora_scale):
            raise InvalidRequestError(
                f"got lora_scale {self.lora_scale}, expected a finite number", param="lora_scale"
            )
        if self.shown_size is not None:
            check_shown_size(*self.shown_size)
        if self.video is not None and self.video.count < CHUNK_FRAMES:
            raise InvalidRequestError(
                f"got a video of {self.video.count} frames, expected at least {CHUNK_FRAMES}",
                param="video",
            )
        for name, media in (("image", self.image), ("video", self.video)):
            size = (self.params.width, self.params.height)
            if media is not None and (media.width, media.height) != size:
                raise InvalidRequestError(
                    f"got {name} frames of {media.width}x{media.height}, "
                    f"expected the video's {size[0]}x{size[1]}",
                    param=name,
                )

    def _switched(self) -> Iterator[str]:
        return (switch.prompt for switch in self.params.switches)


class PromptWeight(msgspec.Struct, frozen=True):
    prompt: str
    weight: float


def prompt_weights(prompt: str, params: SamplingParams, chunk: int) -> tuple[PromptWeight, ...]:
    """The prompts in effect at `chunk`; the chunk's embedding is their weighted sum.

    At a switch over s = `transition_chunks` the p-th chunk weighs the new prompt with
    linspace(0, 1, s)[p] against the one before it; with s < 2 it switches at once. A switch that
    comes before the last one is through starts from that one's prompt.
    """
    begun = [switch for switch in params.switches if switch.chunk <= chunk]
    if not begun:
        return (PromptWeight(prompt, 1.0),)
    new = begun[-1]
    old = begun[-2].prompt if len(begun) > 1 else prompt
    passed, length = chunk - new.chunk, new.transition_chunks
    if length is None:
        length = params.transition_chunks
    weight = passed / (length - 1) if length > 1 else 1.0
    if weight >= 1 or old == new.prompt:
        return (PromptWeight(new.prompt, 1.0),)
    if weight == 0:
        return (PromptWeight(old, 1.0),)
    return (PromptWeight(old, 1 - weight), PromptWeight(new.prompt, weight))


def check_text(text: str) -> None:
    """Text that has no UTF-8 form cannot be sent to a worker."""
    if len(text) > MAX_TEXT:
        raise InvalidRequestError(
            f"got text of {len(text)} characters, expected {MAX_TEXT} at most", param="prompt"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError(
            f"got text with a lone surrogate at {error.start}, expected text that is valid Unicode",
            param="prompt",
        ) from error


def check_references(image: object, video: object) -> None:
    """A video starts from an image or goes on from a video, not both."""
    if image is not None and video is not None:
        raise InvalidRequestError(
            "got both an image and a video, expected at most one of them", param="video"
        )
