"""Sampling options: how a video is sampled, and what a checkpoint allows."""

import math

import msgspec

from helios_serve.errors import InvalidRequestError
from helios_serve.model_config import HeliosConfig, num_chunks
from helios_serve.options.workers import DEFAULT_MODEL
from helios_serve.size import Size, check_size

MAX_FRAMES = 24 * 3600
MAX_STEPS = 1000
DEFAULT_STEPS = {"base": (50,), "mid": (20, 20, 20), "distilled": (2, 2, 2)}
DEFAULT_GUIDANCE = {"base": 5.0, "mid": 5.0, "distilled": 1.0}
NANO_SIZE = Size(128, 64)
PUBLISHED_SIZE = Size(640, 384)


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
            width=self.width,
            height=self.height,
            num_frames=self.num_frames,
            fps=self.fps,
            seed=self.seed,
            steps=resolve_steps(self, config),
            guidance_scale=resolve_guidance(self.guidance_scale, config),
            negative_prompt=self.negative_prompt,
            amplify_first_chunk=self.amplify_first_chunk,
            skip_first_chunk=self.skip_first_chunk,
            use_zero_init=self.use_zero_init,
            zero_steps=self.zero_steps,
            max_sequence_length=self.max_sequence_length,
        )


class ResolvedParams(msgspec.Struct, frozen=True, kw_only=True):
    """Sampling parameters that fit a checkpoint, with its defaults filled in.

    They never change. Prompt switches, which are added while a video is made, stay in the request.
    """

    width: int
    height: int
    num_frames: int
    fps: int
    seed: int
    steps: tuple[int, ...]
    guidance_scale: float
    negative_prompt: str
    amplify_first_chunk: bool
    skip_first_chunk: bool
    use_zero_init: bool
    zero_steps: int
    max_sequence_length: int

    @property
    def is_guided(self) -> bool:
        return self.guidance_scale > 1

    @property
    def num_chunks(self) -> int:
        return num_chunks(self.num_frames)

    def is_amplified(self, chunk: int) -> bool:
        return chunk == 0 and self.amplify_first_chunk

    def stage_steps(self, chunk: int) -> tuple[int, ...]:
        """Denoise steps of each stage of `chunk`; an amplified first chunk takes twice as many."""
        factor = 2 if self.is_amplified(chunk) else 1
        return tuple(factor * steps for steps in self.steps)

    @property
    def total_steps(self) -> int:
        return sum(sum(self.stage_steps(chunk)) for chunk in range(self.num_chunks))


def default_size(model: str) -> Size:
    """(width, height) where none is given: what the published checkpoints are made for, or nano."""
    return NANO_SIZE if model.split("-")[0] == DEFAULT_MODEL else PUBLISHED_SIZE


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
