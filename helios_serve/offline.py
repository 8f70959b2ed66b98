"""Helios from Python: `Helios(model).generate(prompt)`."""

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
from helios_serve.video_request import Frames, VideoRequest, check_references

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class GeneratedChunk:
    """Up to 33 finished frames, (frames, height, width, 3), uint8.

    `latents` are the chunk's own, behind those of the reference where these were asked for.
    """

    index: int
    frames: NDArray[np.uint8]
    latents: tuple[TensorData, ...]

    def as_frames(self) -> Frames:
        count, height, width, _ = self.frames.shape
        return Frames(self.frames.tobytes(), count, height, width)


@dataclass(frozen=True)
class GeneratedVideo:
    """A finished video: (frames, height, width, 3), uint8, and the latents behind it."""

    frames: NDArray[np.uint8]
    fps: int
    latents: tuple[TensorData, ...]

    def save(self, path: PathLike) -> None:
        """Write an MP4."""
        with Mp4Writer(Path(path), fps=self.fps) as writer:
            for start in range(0, len(self.frames), CHUNK_FRAMES):
                part = self.frames[start : start + CHUNK_FRAMES]
                writer.append(GeneratedChunk(start, part, ()).as_frames())

    def save_latents(self, path: PathLike) -> None:
        """Write the latents as safetensors, in diffusers' layout."""
        save_latents(Path(path), self.latents)


class Helios:
    """A model in this process.

    `model` is nano, nano-mid, nano-base, a local folder in Hugging Face layout, or a hub id. Its
    configuration is read at once; its weights are loaded by `load()`, or with the first video
    after all that was asked for it has been checked. `options` are the fields of WorkerOptions:
    device, dtype, quantization and so on (docs/options.md). Raises CheckpointError, DeviceError or
    InvalidRequestError.
    """

    def __init__(self, model: str = DEFAULT_MODEL, **options: Any) -> None:
        self.name = model
        self._engine = InlineEngine(model, from_keywords(WorkerOptions, options))

    def load(self) -> None:
        """Load the weights, if they are not loaded yet."""
        self._engine.load()

    @property
    def config(self) -> HeliosConfig:
        return self._engine.config

    def generate(self, prompt: str, **options: Any) -> GeneratedVideo:
        """The whole video at once; options are those of `stream`."""
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
        """Chunks of the video as they are finished.

        Options are those of `request`. Everything is checked before the weights are loaded;
        raises InvalidRequestError and CheckpointError.
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
        """A checked request, with its reference media loaded at the video's size.

        `params` are the fields of SamplingParams: width, height, num_frames, fps, seed, steps,
        guidance_scale, negative_prompt, switches and so on.
        """
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
        """Sampling parameters from keyword arguments, with this model's default size."""
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
            assert event.frames is not None, "pixels were asked for"
            inputs = [] if event.input_latents is None else [event.input_latents]
            yield GeneratedChunk(
                index=event.chunk,
                frames=as_array(event.frames),
                latents=(*inputs, event.latents),
            )


def from_keywords(kind: type[Options], keywords: dict[str, Any]) -> Options:
    """Options from keyword arguments; raises TypeError for an unknown one, as a call does."""
    for name in keywords:
        if name not in options_of(kind):
            raise TypeError(unknown_option(name, kind))
    return read_options(kind, keywords)
