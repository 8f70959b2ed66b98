"""The request for one video, its reference media and its prompts."""

import math
from collections.abc import Iterator
from typing import Literal

import msgspec

from helios_serve.errors import InvalidRequestError
from helios_serve.model_config import CHUNK_FRAMES, HeliosConfig
from helios_serve.options.fields import check_range
from helios_serve.options.realtime import Pacing
from helios_serve.options.sampling import (
    MAX_FRAMES,
    PromptSwitch,
    ResolvedParams,
    SamplingParams,
)
from helios_serve.options.scheduling import DEFAULT_TENANT, ServiceTier
from helios_serve.size import Size, check_shown_size

MAX_TEXT = 32_768
"""Maximum characters of a prompt. The text encoder reads far fewer."""
MAX_OLD_SWITCHES = 64
"""Earlier prompt switches that a video without an end remembers."""
MAX_MEDIA_BYTES = (1 << 32) - 1
"""Maximum bytes of a reference, decoded: msgpack stores lengths in 32 bits."""
Relation = Literal["remix", "extension", "edit", "continuation", "fork"]
"""How a video was derived from another one.

- remix: generated again with another prompt
- extension: resumed from the other video's snapshot, so that it gets longer
- edit: generated with the other video's frames as its reference
- continuation: generated from the end of a video without a snapshot, as its reference
- fork: resumed from the other video's snapshot with noise, and maybe a prompt, of its own
"""
OutputKind = Literal["frames", "segment"]
"""Whether chunks are delivered as pixels or as MP4 segments."""


class Frames(msgspec.Struct, frozen=True):
    """RGB frames as raw bytes: uint8, (count, height, width, 3), row major.

    `skipped` is the number of frames left out after the first one because V2V does not read them.
    """

    data: bytes
    count: int
    height: int
    width: int
    skipped: int = 0


class VideoRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request for one video.

    - `model`: the served model to use; None selects the first one.
    - `image`, `video`: the reference of I2V or V2V, in the size of the video; at most one is set.
    - `lora`: a local LoRA file or folder, applied with `lora_scale`.
    - `keep_input_latents`: also return the reference's noised latents, which diffusers prepends to
      the video's own.
    - `shown_size`: the size to which frames are scaled and cropped; None keeps the sampled size.
    - `max_lead_chunks`: generation pauses when it is this many chunks ahead of the reader, or, with
      `pacing` "media", ahead of what a viewer has seen of the chunks that were read.
    - `parent`: the id of the video that this one was derived from, as `relation` says.
    - `fingerprint`: a hash of the original request, which identifies a retry of it.
    - `kept_chunks`: of a video without an end, the number of chunks that readers find; the server
      keeps twice as many, for those who are late. None: the video has an end, and all are kept.
    - `traceparent`: the W3C trace context of the video's spans; None: it has none.
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
    pacing: Pacing = "reader"
    parent: str | None = None
    relation: Relation | None = None
    fingerprint: str | None = None
    kept_chunks: int | None = None
    traceparent: str | None = None

    @property
    def prompts(self) -> tuple[str, ...]:
        """The initial prompt and the prompts of all switches, without duplicates."""
        return tuple(dict.fromkeys((self.prompt, *self._switched())))

    @property
    def has_reference(self) -> bool:
        return self.image is not None or self.video is not None

    def without_media(self) -> "VideoRequest":
        """Return the request without its reference, which is large and needed for encoding only."""
        return msgspec.structs.replace(self, image=None, video=None) if self.has_reference else self

    def with_switch(self, switch: PromptSwitch) -> "VideoRequest":
        """Return the request with `switch` in place of all switches at its chunk or later ones."""
        earlier = [item for item in self.params.switches if item.chunk < switch.chunk]
        if self.kept_chunks is not None:
            earlier = earlier[-MAX_OLD_SWITCHES:]
        params = msgspec.structs.replace(self.params, switches=(*earlier, switch))
        return msgspec.structs.replace(self, params=params)

    def resolve(self, config: HeliosConfig) -> ResolvedParams:
        """Check the whole request against `config` and fill in its defaults.

        Raises InvalidRequestError.
        """
        self.check_inputs()
        return self.params.resolve(config)

    def check_inputs(self) -> None:
        """Raise InvalidRequestError unless texts, references and options are within the limits."""
        check_references(self.image, self.video)
        for text in (self.prompt, self.params.negative_prompt, self.lora or "", *self._switched()):
            check_text(text)
        for name, media in (("image", self.image), ("video", self.video)):
            if media is not None and len(media.data) > MAX_MEDIA_BYTES:
                raise InvalidRequestError(
                    f"got {len(media.data)} bytes of {name}, expected at most {MAX_MEDIA_BYTES}",
                    param=name,
                )
        if self.kept_chunks is None:
            check_range("num_frames", self.params.num_frames, 1, MAX_FRAMES)
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
    """A prompt and its weight in a mix of prompts; the weights of a mix add up to 1."""

    prompt: str
    weight: float


def prompt_weights(prompt: str, params: SamplingParams, chunk: int) -> tuple[PromptWeight, ...]:
    """Return the prompts in effect at `chunk`; their weighted sum is the chunk's text embedding.

    A prompt switch with s = `transition_chunks` fades from the previous prompt: at its p-th chunk
    (from 0) the new prompt has weight linspace(0, 1, s)[p]. With s < 2 it switches at once. If
    another switch starts during the fade, it fades from the new prompt of the interrupted one.
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
    """Raise InvalidRequestError for text that is too long or cannot be encoded as UTF-8."""
    if len(text) > MAX_TEXT:
        raise InvalidRequestError(
            f"got text of {len(text)} characters, expected at most {MAX_TEXT}", param="prompt"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError(
            f"got text with a lone surrogate at {error.start}, expected text that is valid Unicode",
            param="prompt",
        ) from error


def check_prompt(text: str) -> None:
    """Raise InvalidRequestError for a prompt of the user without any visible character."""
    if not text.strip():
        raise InvalidRequestError(
            "got an empty prompt, expected text that describes the video", param="prompt"
        )


def check_references(image: object, video: object) -> None:
    """Raise InvalidRequestError if both an image (I2V) and a video (V2V) are given."""
    if image is not None and video is not None:
        raise InvalidRequestError(
            "got both an image and a video, expected at most one of them", param="video"
        )
