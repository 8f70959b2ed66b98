"""Conversion of another server's requests to engine requests."""

from collections.abc import Mapping
from typing import Any

import msgspec

from helios_serve.media.pictures import frames_from
from helios_serve.model_config import HeliosConfig
from helios_serve.options.fields import read_options
from helios_serve.options.sampling import SamplingParams, default_size
from helios_serve.options.vllm_omni import renamed
from helios_serve.video_request import Frames, VideoRequest, check_references


class ForeignRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request for a video from another server.

    `options` are the fields of SamplingParams, by our names or diffusers'. None leaves an option to
    the checkpoint's default. `image` and `video` are in any form that `frames_from` accepts. `lora`
    is a local file or folder.
    """

    request_id: str
    prompt: str
    options: Mapping[str, Any]
    image: Any = None
    video: Any = None
    lora: str | None = None
    lora_scale: float = 1.0
    max_lead_chunks: int | None = None

    def to_video_request(self, model: str, config: HeliosConfig) -> VideoRequest:
        """Return the validated engine request. Raises InvalidRequestError."""
        check_references(self.image, self.video)
        params = sampling_params(self.options, model, config)
        return VideoRequest(
            request_id=self.request_id,
            prompt=self.prompt,
            params=params,
            image=self._frames("image", params),
            video=self._frames("video", params),
            lora=self.lora,
            lora_scale=self.lora_scale,
            max_lead_chunks=self.max_lead_chunks,
        )

    def _frames(self, kind: Any, params: SamplingParams) -> Frames | None:
        media = self.image if kind == "image" else self.video
        if media is None:
            return None
        return frames_from(media, kind, width=params.width, height=params.height)


def sampling_params(options: Mapping[str, Any], model: str, config: HeliosConfig) -> SamplingParams:
    """Build validated sampling parameters from plain values. Raises InvalidRequestError."""
    size, chosen = default_size(model), renamed(options)
    params = read_options(SamplingParams, size._asdict() | chosen)
    params.resolve(config)
    return params
