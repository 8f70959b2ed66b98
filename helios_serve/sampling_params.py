"""What a user asks for: one video, and how to sample it."""

import math
from collections.abc import Callable, Iterator
from typing import Literal

import msgspec

from helios_serve.errors import InvalidRequestError
from helios_serve.model_config import CHUNK_FRAMES, HeliosConfig, num_chunks

MAX_SIDE = 4096
MIN_SHOWN_SIDE = 16
MAX_FRAMES = 24 * 3600
MAX_STEPS = 1000
MAX_TEXT = 32_768
"""Characters of a prompt; what models read of it is far less."""
MAX_MEDIA_BYTES = (1 << 32) - 1
DEFAULT_TENANT = "default"
DEFAULT_STEPS = {"base": (50,), "mid": (20, 20, 20), "distilled": (2, 2, 2)}
DEFAULT_GUIDANCE = {"base": 5.0, "mid": 5.0, "distilled": 1.0}


ServiceTier = Literal["priority", "default", "flex"]
"""priority is real-time, flex takes what the others leave."""
Relation = Literal["remix", "extension", "edit", "continuation"]
"""How a video comes from another: the same under another prompt, the same and more, made from its
frames; a continuation is made from the end of a video whose state is not known."""
OutputKind = Literal["frames", "segment"]
"""Whether chunks are handed on as pixels or as segments of an MP4."""


class PromptSwitch(msgspec.Struct, frozen=True):
    """From `chunk` on (counted from 0) the video turns to `prompt`.

    It takes `transition_chunks` to get there; None is what the request says.
    """

    chunk: int
    prompt: str
    transition_chunks: int | None = None


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """How a video is sampled. None means the published default of the checkpoint's variant.

    `steps` counts denoise steps a pyramid stage (Mid, Distilled), `num_inference_steps` those of
    Base. The sigmas are (min, max) of the noise that is mixed into reference images and videos.
    `zero_steps` and `use_zero_init` belong to CFG-Zero* (Mid).
    """

    width: int = 640
    height: int = 384
    num_frames: int = 99
    fps: int = 24
    seed: int = 0
    steps: tuple[int, ...] | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    negative_prompt: str = ""
    switches: tuple[PromptSwitch, ...] = ()
    transition_chunks: int = 3
    amplify_first_chunk: bool = False
    skip_first_chunk: bool = False
    use_zero_init: bool = True
    zero_steps: int = 1
    image_noise_sigma: tuple[float, float] = (0.111, 0.135)
    video_noise_sigma: tuple[float, float] = (0.111, 0.135)
    add_input_noise: bool = True
    max_sequence_length: int = 512

    def resolve(self, config: HeliosConfig) -> "ResolvedParams":
        """Check against `config` and fill in its defaults; raises InvalidRequestError."""
        check_size(self.width, self.height, config)
        check_range("num_frames", self.num_frames, 1, MAX_FRAMES)
        check_range("fps", self.fps, 1, 120)
        check_range("seed", self.seed, 0, 2**63 - 1)
        check_range("max_sequence_length", self.max_sequence_length, 1, 512)
        check_range("transition_chunks", self.transition_chunks, 0, 100)
        check_range("zero_steps", self.zero_steps, 0, MAX_STEPS)
        check_sigma("image_noise_sigma", self.image_noise_sigma)
        check_sigma("video_noise_sigma", self.video_noise_sigma)
        check_switches(self.switches, num_chunks(self.num_frames))
        if self.amplify_first_chunk and config.scheduler.solver != "dmd":
            raise InvalidRequestError(
                f"got amplify_first_chunk with a {config.variant} checkpoint, "
                "expected a distilled one (DMD)",
                param="amplify_first_chunk",
            )
        return ResolvedParams(
            params=self,
            steps=resolve_steps(self, config),
            guidance_scale=resolve_guidance(self.guidance_scale, config),
        )


class ResolvedParams(msgspec.Struct, frozen=True):
    """Sampling parameters that fit a checkpoint, with nothing left open."""

    params: SamplingParams
    steps: tuple[int, ...]
    guidance_scale: float

    @property
    def is_guided(self) -> bool:
        return self.guidance_scale > 1

    @property
    def num_chunks(self) -> int:
        return num_chunks(self.params.num_frames)

    def is_amplified(self, chunk: int) -> bool:
        return chunk == 0 and self.params.amplify_first_chunk

    def stage_steps(self, chunk: int) -> tuple[int, ...]:
        """Denoise steps of each stage of `chunk`; an amplified first chunk takes twice as many."""
        factor = 2 if self.is_amplified(chunk) else 1
        return tuple(factor * steps for steps in self.steps)

    @property
    def total_steps(self) -> int:
        return sum(sum(self.stage_steps(chunk)) for chunk in range(self.num_chunks))


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
    shown_size: tuple[int, int] | None = None
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


def resolve_steps(params: SamplingParams, config: HeliosConfig) -> tuple[int, ...]:
    single = config.stages == 1
    given, other = params.steps, params.num_inference_steps
    if single and given is None and other is not None:
        given = (other,)
    elif not single and other is not None:
        raise InvalidRequestError(
            f"got num_inference_steps={other} with a {config.variant} checkpoint, "
            f"expected steps, one number for each of its {config.stages} stages",
            param="num_inference_steps",
        )
    steps = DEFAULT_STEPS[config.variant] if given is None else given
    if len(steps) != config.stages:
        raise InvalidRequestError(
            f"got {len(steps)} step counts ({','.join(map(str, steps))}), "
            f"expected {config.stages} for a {config.variant} checkpoint",
            param="steps",
        )
    for count in steps:
        check_range("steps", count, 1, MAX_STEPS)
    return steps


def resolve_guidance(scale: float | None, config: HeliosConfig) -> float:
    if scale is None:
        return DEFAULT_GUIDANCE[config.variant]
    if not math.isfinite(scale) or not 0 <= scale <= 100:
        raise InvalidRequestError(
            f"got guidance_scale {scale}, expected 0 to 100", param="guidance_scale"
        )
    if config.variant == "distilled" and scale > 1:
        raise InvalidRequestError(
            f"got guidance_scale {scale} with a distilled checkpoint, expected at most 1: "
            "guidance is distilled into its weights",
            param="guidance_scale",
        )
    return scale


def parse_size(text: str) -> tuple[int, int]:
    """Width and height, in pixels; whether they can be made is another question."""
    try:
        width, height = text.lower().split("x")
        return int(width), int(height)
    except ValueError as error:
        raise InvalidRequestError(
            f"got size {text!r}, expected WIDTHxHEIGHT in pixels, such as 640x384", param="size"
        ) from error


def nearest_size(
    width: int, height: int, config: HeliosConfig, rounded: Callable[[float], int] = round
) -> tuple[int, int]:
    """The size next to width x height that a checkpoint can make."""
    step = config.size_multiple
    sides = (min(max(step, rounded(side / step) * step), MAX_SIDE) for side in (width, height))
    return next(sides), next(sides)


def check_size(width: int, height: int, config: HeliosConfig) -> None:
    """Both sides must divide by the checkpoint's size multiple."""
    step = config.size_multiple
    fits = all(side % step == 0 and step <= side <= MAX_SIDE for side in (width, height))
    if fits:
        return
    lower, upper = (
        nearest_size(width, height, config, rounded) for rounded in (math.floor, math.ceil)
    )
    nearest = " or ".join(f"{w}x{h}" for w, h in dict.fromkeys((lower, upper)))
    raise InvalidRequestError(
        f"got size {width}x{height}, expected WIDTHxHEIGHT with both sides multiples of {step} "
        f"up to {MAX_SIDE} for a {config.variant} checkpoint, such as {nearest}",
        param="size",
    )


def check_shown_size(width: int, height: int) -> None:
    """Pixels of a video come in pairs: colours have half the resolution."""
    if any(side % 2 or not MIN_SHOWN_SIDE <= side <= MAX_SIDE for side in (width, height)):
        raise InvalidRequestError(
            f"got size {width}x{height}, expected WIDTHxHEIGHT with even sides from "
            f"{MIN_SHOWN_SIDE} to {MAX_SIDE}",
            param="size",
        )


def check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise InvalidRequestError(f"got {name} {value}, expected {low} to {high}", param=name)


def check_sigma(name: str, sigma: tuple[float, float]) -> None:
    low, high = sigma
    if not 0 <= low <= high <= 1:
        raise InvalidRequestError(
            f"got {name} {low},{high}, expected MIN,MAX with 0 <= MIN <= MAX <= 1", param=name
        )


def check_switches(switches: tuple[PromptSwitch, ...], chunks: int) -> None:
    at = [switch.chunk for switch in switches]
    if any(not 1 <= chunk < chunks for chunk in at):
        allowed = f"1 to {chunks - 1}" if chunks > 1 else "no switch: the video is one chunk long"
        raise InvalidRequestError(
            f"got prompt switches at chunks {at}, expected {allowed}", param="switches"
        )
    if at != sorted(set(at)):
        raise InvalidRequestError(
            f"got prompt switches at chunks {at}, expected each chunk once, in rising order",
            param="switches",
        )
