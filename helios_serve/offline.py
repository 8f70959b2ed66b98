"""Python API: `Helios(model).generate(prompt)`."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from helios_serve.engine.inline_engine import InlineEngine, StepDone
from helios_serve.media.latent_file import save_latents
from helios_serve.media.mp4 import Mp4Writer, as_array
from helios_serve.media.references import load_image, load_video
from helios_serve.messages import TensorData
from helios_serve.model_config import CHUNK_FRAMES, HeliosConfig
from helios_serve.options.fields import Options, options_of, read_options, unknown_option
from helios_serve.options.sampling import SamplingParams, default_size
from helios_serve.options.workers import DEFAULT_MODEL, WorkerOptions
from helios_serve.video_request import Frames, VideoRequest, check_prompt, check_references

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class GeneratedChunk:
    """A finished chunk of at most 33 frames: uint8, (frames, height, width, 3).

    `latents` are the chunk's latents, preceded by those of the reference if they were requested.
    """

    index: int
    frames: NDArray[np.uint8]
    latents: tuple[TensorData, ...]

    def as_frames(self) -> Frames:
        count, height, width, _ = self.frames.shape
        return Frames(self.frames.tobytes(), count, height, width)


@dataclass(frozen=True)
class GeneratedVideo:
    """A finished video: `frames` (frames, height, width, 3), uint8, and their `latents`."""

    frames: NDArray[np.uint8]
    fps: int
    latents: tuple[TensorData, ...]

    def save(self, path: PathLike) -> None:
        """Write the video to an MP4 file."""
        with Mp4Writer(Path(path), fps=self.fps) as writer:
            for start in range(0, len(self.frames), CHUNK_FRAMES):
                part = self.frames[start : start + CHUNK_FRAMES]
                writer.append(GeneratedChunk(start, part, ()).as_frames())

    def save_latents(self, path: PathLike) -> None:
        """Write the latents to a safetensors file, in diffusers' layout."""
        save_latents(Path(path), self.latents)


class Helios:
    """A model in this process.

    Its configuration is read at once. Its weights are loaded by `load()`, or with the first video,
    after the request is validated.

    Args:
        model: nano, nano-mid, nano-base, a local folder in Hugging Face layout, or a hub id.
        options: Fields of WorkerOptions, such as device, dtype and quantization; see
            docs/options.md.

    Raises CheckpointError, DeviceError or InvalidRequestError.
    """

    def __init__(self, model: str = DEFAULT_MODEL, **options: Any) -> None:
        self.name = model
        self._engine = InlineEngine(model, from_keywords(WorkerOptions, options))

    def load(self) -> None:
        """Load the weights, if they are not loaded yet."""
        self._engine.load()

    @property
    def config(self) -> HeliosConfig:
        """The configuration of the checkpoint."""
        return self._engine.config

    def generate(self, prompt: str, **options: Any) -> GeneratedVideo:
        """Generate a whole video.

        `options` are those of `request`. Raises the errors of `stream`.
        """
        request = self.request(prompt, **options)
        chunks = list(self._run(request, None))
        return GeneratedVideo(
            frames=np.concatenate([chunk.frames for chunk in chunks]),
            fps=request.params.fps,
            latents=tuple(part for chunk in chunks for part in chunk.latents),
        )

    def stream(
        self, prompt: str, *, on_step: Callable[[StepDone], None] | None = None, **options: Any
    ) -> Iterator[GeneratedChunk]:
        """Return an iterator over the chunks of a video, as they are finished.

        `options` are those of `request`. `on_step` is called after each denoise step. The request
        is validated at once, before the weights are loaded. Raises InvalidRequestError and
        CheckpointError.
        """
        return self._run(self.request(prompt, **options), on_step)

    def request(
        self,
        prompt: str,
        *,
        image: PathLike | None = None,
        video: PathLike | None = None,
        lora: PathLike | None = None,
        lora_scale: float = 1.0,
        keep_input_latents: bool = False,
        **params: Any,
    ) -> VideoRequest:
        """Return a validated request, with its reference loaded and scaled to the video's size.

        Args:
            prompt: Text prompt.
            image: Image file to start from (I2V).
            video: Video file, or folder of frames, to continue (V2V).
            lora: LoRA adapter, a safetensors file or a folder (docs/files.md).
            lora_scale: Scale of the LoRA adapter.
            keep_input_latents: Return the reference's latents with the first chunk.
            params: Fields of SamplingParams, such as width, height, num_frames, fps, seed, steps,
                guidance_scale, negative_prompt and switches.
        """
        check_prompt(prompt)
        check_references(image, video)
        sampling = self._sampling_params(params)
        sampling.resolve(self.config)
        size = {"width": sampling.width, "height": sampling.height}
        request = VideoRequest(
            request_id="offline",
            prompt=prompt,
            params=sampling,
            image=None if image is None else load_image(Path(image), **size),
            video=None if video is None else load_video(Path(video), **size),
            lora=None if lora is None else os.fspath(lora),
            lora_scale=lora_scale,
            keep_input_latents=keep_input_latents,
        )
        self._engine.check(request)
        return request

    def _sampling_params(self, options: dict[str, Any]) -> SamplingParams:
        """Build sampling parameters from keyword arguments, with the model's default size."""
        size = default_size(self.name)
        return from_keywords(SamplingParams, size._asdict() | options)

    def _run(
        self, request: VideoRequest, on_step: Callable[[StepDone], None] | None
    ) -> Iterator[GeneratedChunk]:
        for event in self._engine.generate(request):
            if isinstance(event, StepDone):
                if on_step is not None:
                    on_step(event)
                continue
            assert event.frames is not None, "the chunk has no pixels"
            inputs = [] if event.input_latents is None else [event.input_latents]
            yield GeneratedChunk(
                index=event.chunk,
                frames=as_array(event.frames),
                latents=(*inputs, event.latents),
            )


def from_keywords(kind: type[Options], keywords: dict[str, Any]) -> Options:
    """Build options from keyword arguments. Raises TypeError for an unknown one, as a call does."""
    for name in keywords:
        if name not in options_of(kind):
            raise TypeError(unknown_option(name, kind))
    return read_options(kind, keywords)
