"""`helios-serve generate`: generates one video and writes it to an MP4 file."""

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from helios_serve.engine.preflight import check_model
from helios_serve.entrypoints.cli import arguments as parsers
from helios_serve.entrypoints.cli import outputs
from helios_serve.entrypoints.cli.flags import (
    add_model_flags,
    add_options,
    given_options,
    read_flags,
)
from helios_serve.errors import InvalidRequestError
from helios_serve.logger import logger
from helios_serve.media.latent_file import save_latents
from helios_serve.media.mp4 import Mp4Writer
from helios_serve.media.refusals import check_exists
from helios_serve.messages import TensorData
from helios_serve.options.fields import read_options
from helios_serve.options.sampling import (
    NANO_SIZE,
    PUBLISHED_SIZE,
    SamplingParams,
    default_size,
)
from helios_serve.options.workers import WorkerConfig, WorkerGroup, WorkerOptions, worker_config
from helios_serve.video_request import check_prompt, check_references

if TYPE_CHECKING:
    from helios_serve.engine.inline_engine import StepDone

EPILOG = """\
examples:
  helios-serve generate "a dog runs over a green hill"
  helios-serve generate "the camera pulls back" --image photo.jpg --seconds 10 --output out.mp4
  helios-serve generate "a calm sea" --prompt-at "2:a storm rises" --num-frames 198
"""

REFERENCE_OPTIONS = ("image_noise_sigma", "video_noise_sigma", "add_input_noise")


def add_command(commands: Any) -> None:
    """Register the command and its flags."""
    parser = commands.add_parser(
        "generate",
        help="generate one video and write it to a file",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "text", nargs="?", metavar="PROMPT", help="text prompt that describes the video"
    )
    parser.add_argument("--prompt", metavar="PROMPT", help="same as PROMPT (default: none)")
    parser.alias = "--prompt"
    parser.add_config_flag()
    parsers.add_log_flags(parser)
    add_output_flags(parser)
    group = add_model_flags(parser)
    group.add_argument(
        "--lora",
        metavar="PATH",
        help="LoRA adapter, a safetensors file or folder (default: none)",
    )
    group.add_argument(
        "--lora-scale",
        type=parsers.number,
        default=1.0,
        metavar="X",
        help="scale of the LoRA adapter (default: 1.0)",
    )
    add_reference_flags(parser)
    add_sampling_flags(parser)


def add_output_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument(
        "--output",
        type=Path,
        default=Path("video.mp4"),
        metavar="FILE.mp4",
        help="output file of the video (default: video.mp4)",
    )
    group.add_argument(
        "--output-latents",
        type=Path,
        metavar="FILE.safetensors",
        help="also write the final latents, in diffusers' layout (default: none)",
    )
    group.add_argument(
        "--size",
        type=parsers.size,
        metavar="WIDTHxHEIGHT",
        help=f"size in pixels (default: {PUBLISHED_SIZE}, {NANO_SIZE} for nano)",
    )
    length = group.add_mutually_exclusive_group()
    add_options(length, SamplingParams, include=("num_frames",))
    length.add_argument(
        "--seconds", type=parsers.seconds, metavar="S", help="length in seconds (default: none)"
    )
    add_options(group, SamplingParams, include=("fps",))


def add_reference_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("reference")
    group.add_argument("--image", metavar="FILE", help="start from an image (I2V) (default: none)")
    group.add_argument(
        "--video", metavar="FILE_OR_FOLDER", help="continue a video (V2V) (default: none)"
    )
    add_options(group, SamplingParams, include=REFERENCE_OPTIONS)


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling")
    others = ("width", "height", "num_frames", "fps", *REFERENCE_OPTIONS)
    add_options(group, SamplingParams, exclude=others)


def run(arguments: argparse.Namespace) -> int:
    """Generate the video, and write it chunk by chunk. Returns the exit status."""
    check(arguments)
    outputs.check_outputs(arguments)
    logger.info("loading %s", arguments.model)
    # Imported late: torch takes seconds to import, and --help and errors must be immediate.
    from helios_serve.offline import Helios

    model = Helios(arguments.model, **given_options(arguments, WorkerOptions))
    progress = ProgressBar()
    options = sampling_options(arguments) | {
        "image": arguments.image,
        "video": arguments.video,
        "lora": arguments.lora,
        "lora_scale": arguments.lora_scale,
        "keep_input_latents": arguments.output_latents is not None,
    }
    chunks = model.stream(arguments.prompt, on_step=progress.on_step, **options)
    model.load()
    progress.on_load()
    latents: list[TensorData] = []
    try:
        with progress, Mp4Writer(arguments.output, fps=fps_of(arguments)) as writer:
            for chunk in chunks:
                writer.append(chunk.as_frames())
                progress.on_frames(len(chunk.frames))
                if arguments.output_latents is not None:
                    latents += chunk.latents
    except KeyboardInterrupt:
        print(f"{arguments.output}: {progress.frames} frames until it was interrupted")
        raise
    if arguments.output_latents is not None:
        shape = save_latents(arguments.output_latents, latents)
        print(f"{arguments.output_latents}: latents {list(shape)}")
    print(f"{arguments.output}: {progress.frames} frames, {progress.rate:.2f} frames/s")
    return 0


def check(arguments: argparse.Namespace) -> None:
    """Check all that can be checked without torch.

    Raises InvalidRequestError, CheckpointError or DeviceError.
    """
    if arguments.prompt is None:
        raise InvalidRequestError("got no prompt, expected PROMPT or --prompt", param="prompt")
    check_prompt(arguments.prompt)
    check_references(arguments.image, arguments.video)
    for name in ("image", "video"):
        if (path := getattr(arguments, name)) is not None:
            check_exists(Path(path), name)
    workers = worker_config(
        arguments.model, read_flags(arguments, WorkerOptions), like=WorkerConfig()
    )
    config = check_model(arguments.model, [WorkerGroup(workers)], "inline")
    params = read_options(SamplingParams, sampling_options(arguments))
    if config is not None:
        params.resolve(config)


class ProgressBar:
    """Shows chunks, steps, and frames per second since the model was loaded."""

    def __init__(self) -> None:
        self.frames = 0
        self._started = time.perf_counter()
        self._last = self._started
        self._bar: tqdm[Any] | None = None

    @property
    def rate(self) -> float:
        """Frames per second, from the start of generation to the last finished chunk."""
        return self.frames / max(self._last - self._started, 1e-9)

    def on_load(self) -> None:
        self._started = self._last = time.perf_counter()

    def on_step(self, step: "StepDone") -> None:
        if self._bar is None:
            self._bar = tqdm(total=step.total, unit="step", dynamic_ncols=True, file=sys.stderr)
        chunk, stage, _ = step.cursor
        self._bar.set_description(f"chunk {chunk} stage {stage}", refresh=False)
        self._bar.update()

    def on_frames(self, count: int) -> None:
        self.frames += count
        self._last = time.perf_counter()
        if self._bar is not None:
            self._bar.set_postfix_str(f"{self.rate:.2f} frames/s")

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


def sampling_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of SamplingParams that the flags give, and the size."""
    width, height = arguments.size or default_size(arguments.model)
    options = given_options(arguments, SamplingParams)
    if arguments.seconds is not None:
        options["num_frames"] = max(1, round(arguments.seconds * fps_of(arguments)))
    return options | {"width": width, "height": height}


def fps_of(arguments: argparse.Namespace) -> int:
    fps: int = arguments.fps or SamplingParams().fps
    return fps
