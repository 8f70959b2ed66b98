"""Sampling options, and their validation against a checkpoint."""

from typing import Annotated

import msgspec
from msgspec import Meta

from helios_serve.errors import InvalidRequestError
from helios_serve.model_config import HeliosConfig, num_chunks
from helios_serve.options.fields import check_range, check_ranges
from helios_serve.options.workers import DEFAULT_MODEL, RANDOM_MODEL, LoadFormat
from helios_serve.size import Size, check_size

MAX_FRAMES = 24 * 3600
ENDLESS_FRAMES = 33 * 10**9
"""Number of frames of a video without an end: at 24 frames a second it ends after 43 years."""
MAX_STEPS = 1000
DEFAULT_STEPS = {"base": (50,), "mid": (20, 20, 20), "distilled": (2, 2, 2)}
DEFAULT_GUIDANCE = {"base": 5.0, "mid": 5.0, "distilled": 1.0}
NANO_SIZE = Size(64, 64)
PUBLISHED_SIZE = Size(640, 384)
"""Sizes that the models were trained for: at larger ones, nano shows more than one object."""


class PromptSwitch(msgspec.Struct, frozen=True):
    """A change of the prompt to `prompt` at chunk number `chunk`, counted from 0.

    `transition_chunks` is the number of chunks over which the prompts are blended (None: the
    request's own setting).
    """

    chunk: int
    prompt: str
    transition_chunks: int | None = None


StepCount = Annotated[int, Meta(ge=1, le=MAX_STEPS)]
NumFrames = Annotated[
    int, Meta(ge=1, le=MAX_FRAMES, description="Number of frames.", extra={"metavar": "N"})
]
FrameCount = Annotated[
    int,
    Meta(
        ge=1,
        le=ENDLESS_FRAMES,
        description="Number of frames.",
        extra={"metavar": "N", "allowed": f"1 to {MAX_FRAMES}"},
    ),
]
"""Also that of a video without an end, which `VideoRequest.kept_chunks` allows."""
FramesPerSecond = Annotated[
    int, Meta(ge=1, le=120, description="Frames per second.", extra={"metavar": "N"})
]
Seed = Annotated[
    int,
    Meta(
        ge=0,
        le=2**63 - 1,
        description="Seed of the random noise; the same request and seed give the same video.",
        extra={"metavar": "N"},
    ),
]


class SamplingOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options with the same name, type and default in every interface.

    HTTP bodies, batch lines and `SamplingParams` inherit them. Command-line flags, integrations and
    docs/options.md are generated from them.
    """

    fps: FramesPerSecond = 24
    steps: Annotated[
        tuple[StepCount, ...] | None,
        Meta(
            description="Denoise steps of each pyramid stage (Mid and Distilled).",
            extra={"metavar": "N,N,N", "default": "20,20,20 for Mid, 2,2,2 for Distilled"},
        ),
    ] = None
    num_inference_steps: Annotated[
        StepCount | None,
        Meta(description="Denoise steps (Base).", extra={"metavar": "N", "default": "50"}),
    ] = None
    guidance_scale: Annotated[
        Annotated[float, Meta(ge=0, le=100)] | None,
        Meta(
            description="Scale of classifier-free guidance; at most 1 turns it off. Distilled does "
            "not support it.",
            extra={"metavar": "X", "default": "5 for Base and Mid, 1 for Distilled"},
        ),
    ] = None
    negative_prompt: Annotated[
        str,
        Meta(description="Text prompt that guidance steers away from.", extra={"metavar": "TEXT"}),
    ] = ""
    switches: Annotated[
        tuple[PromptSwitch, ...],
        Meta(
            description="Prompts that replace the previous one from a chunk on (chunks have 33 "
            "frames and are counted from 0).",
            extra={"flag": "--prompt-at", "metavar": "CHUNK:TEXT"},
        ),
    ] = ()
    transition_chunks: Annotated[
        int,
        Meta(
            ge=0,
            le=100,
            description="Number of chunks over which a prompt switch is blended.",
            extra={"metavar": "N"},
        ),
    ] = 3
    amplify_first_chunk: Annotated[
        bool, Meta(description="Use twice the denoise steps for the first chunk (Distilled).")
    ] = False
    skip_first_chunk: Annotated[
        bool, Meta(description="Take the anchor frame from the second chunk, not the first.")
    ] = False
    use_zero_init: Annotated[
        bool,
        Meta(
            description="Zero the prediction of the first steps (CFG-Zero*, Mid).",
            extra={"flag": "--no-zero-init"},
        ),
    ] = True
    zero_steps: Annotated[
        int,
        Meta(
            ge=0,
            le=MAX_STEPS,
            description="Number of steps after the first that CFG-Zero* zeroes (Mid).",
            extra={"metavar": "N"},
        ),
    ] = 1
    image_noise_sigma: Annotated[
        tuple[float, float],
        Meta(
            description="Range of sigma for noise mixed into the reference's anchor frame.",
            extra={"metavar": "MIN,MAX"},
        ),
    ] = (0.111, 0.135)
    video_noise_sigma: Annotated[
        tuple[float, float],
        Meta(
            description="Range of sigma for noise mixed into the reference's history frames.",
            extra={"metavar": "MIN,MAX"},
        ),
    ] = (0.111, 0.135)
    add_input_noise: Annotated[
        bool,
        Meta(
            description="Mix noise into reference images and videos.",
            extra={"flag": "--no-input-noise"},
        ),
    ] = True
    max_sequence_length: Annotated[
        int,
        Meta(
            ge=1,
            le=512,
            description="Maximum number of prompt tokens; further ones are ignored.",
            extra={"metavar": "N"},
        ),
    ] = 512


class SamplingParams(SamplingOptions, frozen=True, kw_only=True):
    """Sampling parameters, with the size and length of the video.

    None means the default of the checkpoint's variant.
    """

    width: Annotated[int, Meta(description="Width in pixels.")] = 640
    height: Annotated[int, Meta(description="Height in pixels.")] = 384
    num_frames: FrameCount = 99
    seed: Seed = 0

    @property
    def is_endless(self) -> bool:
        """Whether the video has no end of its own."""
        return self.num_frames == ENDLESS_FRAMES

    def resolve(self, config: HeliosConfig) -> "ResolvedParams":
        """Validate the parameters against `config`, and fill in its defaults.

        Raises InvalidRequestError, which names the invalid field.
        """
        check_size(self.width, self.height, config)
        check_ranges(self)
        if not self.is_endless:
            check_range("num_frames", self.num_frames, 1, MAX_FRAMES)
        check_sigma("image_noise_sigma", self.image_noise_sigma)
        check_sigma("video_noise_sigma", self.video_noise_sigma)
        check_switches(self.switches, num_chunks(self.num_frames))
        if self.amplify_first_chunk and config.scheduler.solver != "dmd":
            raise InvalidRequestError(
                f"got amplify_first_chunk with a {config.variant} checkpoint, "
                "expected a distilled one (DMD)",
                param="amplify_first_chunk",
            )
        options = msgspec.structs.asdict(self)
        options["steps"] = resolve_steps(self, config)
        options["guidance_scale"] = resolve_guidance(self.guidance_scale, config)
        options["switches"] = ()
        return ResolvedParams(**options)


class ResolvedParams(SamplingParams, frozen=True, kw_only=True):
    """Sampling parameters that are valid for a checkpoint, with all defaults filled in.

    They never change: prompt switches, which are added while a video is made, stay in the request.
    """

    steps: tuple[int, ...]
    guidance_scale: float

    @property
    def is_guided(self) -> bool:
        """Whether classifier-free guidance is used."""
        return self.guidance_scale > 1

    @property
    def num_chunks(self) -> int:
        return num_chunks(self.num_frames)

    def is_amplified(self, chunk: int) -> bool:
        return chunk == 0 and self.amplify_first_chunk

    def stage_steps(self, chunk: int) -> tuple[int, ...]:
        """Return the number of denoise steps of each stage of `chunk`, doubled if it is
        amplified.
        """
        factor = 2 if self.is_amplified(chunk) else 1
        return tuple(factor * steps for steps in self.steps)

    @property
    def total_steps(self) -> int:
        """Denoise steps of the whole video."""
        return sum(sum(self.stage_steps(chunk)) for chunk in range(self.num_chunks))


def default_size(model: str) -> Size:
    """Return the default size of a model: that of the published checkpoints, or nano's."""
    return NANO_SIZE if model.split("-")[0] == DEFAULT_MODEL else PUBLISHED_SIZE


def has_random_weights(model: str, load_format: LoadFormat = "auto") -> bool:
    """Return whether a model shows noise, because nothing trained its weights."""
    return model == RANDOM_MODEL or load_format == "dummy"


def resolve_steps(params: SamplingParams, config: HeliosConfig) -> tuple[int, ...]:
    """Return the steps of each stage. Raises InvalidRequestError if their number does not fit."""
    single = config.stages == 1
    given, other = params.steps, params.num_inference_steps
    if single and given is None and other is not None:
        given = (other,)
    elif not single and other is not None:
        raise InvalidRequestError(
            f"got num_inference_steps={other} with a {config.variant} checkpoint, "
            f"expected steps with one number for each of its {config.stages} stages",
            param="num_inference_steps",
        )
    steps = DEFAULT_STEPS[config.variant] if given is None else given
    if len(steps) != config.stages:
        raise InvalidRequestError(
            f"got {len(steps)} step counts ({','.join(map(str, steps))}), "
            f"expected {config.stages} for a {config.variant} checkpoint",
            param="steps",
        )
    return steps


def resolve_guidance(scale: float | None, config: HeliosConfig) -> float:
    """Return the guidance scale. Raises InvalidRequestError for guidance with a distilled model."""
    if scale is None:
        return DEFAULT_GUIDANCE[config.variant]
    if config.variant == "distilled" and scale > 1:
        raise InvalidRequestError(
            f"got guidance_scale {scale} with a distilled checkpoint, expected at most 1: "
            "guidance is distilled into its weights",
            param="guidance_scale",
        )
    return scale


def check_sigma(name: str, sigma: tuple[float, float]) -> None:
    """Raise InvalidRequestError unless 0 <= MIN <= MAX <= 1."""
    low, high = sigma
    if not 0 <= low <= high <= 1:
        raise InvalidRequestError(
            f"got {name} {low},{high}, expected MIN,MAX with 0 <= MIN <= MAX <= 1", param=name
        )


def check_switches(switches: tuple[PromptSwitch, ...], chunks: int) -> None:
    """Raise InvalidRequestError unless each switch has its own chunk, in ascending order."""
    at = [switch.chunk for switch in switches]
    if any(not 1 <= chunk < chunks for chunk in at):
        allowed = f"1 to {chunks - 1}" if chunks > 1 else "none: the video has only one chunk"
        raise InvalidRequestError(
            f"got prompt switches at chunks {at}, expected {allowed}", param="switches"
        )
    if at != sorted(set(at)):
        raise InvalidRequestError(
            f"got prompt switches at chunks {at}, expected distinct chunks in ascending order",
            param="switches",
        )
