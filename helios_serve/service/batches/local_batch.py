"""Requests of local batch files (`helios-serve run-batch`), which may name local files."""

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from helios_serve.errors import InvalidRequestError
from helios_serve.media.references import load_image, load_video
from helios_serve.model_config import HeliosConfig
from helios_serve.options.fields import read_options
from helios_serve.service.batches.batch_line import BatchLine
from helios_serve.service.protocol import CreateVideo
from helios_serve.service.videos.requests import asked_size, creation, sampled_size
from helios_serve.video_request import VideoRequest, check_references


class LocalVideo(CreateVideo, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request for a new video. Its files are relative to the batch file.

    `lora` is a file or folder here, not the name of an offered adapter.
    """

    image: Annotated[str | None, Meta(description="Image file to start from (I2V).")] = None
    video: Annotated[str | None, Meta(description="Video file to continue (V2V).")] = None


def local_request(line: BatchLine, folder: Path, model: str, config: HeliosConfig) -> VideoRequest:
    """Build the request of a line, with its files read from `folder`.

    A seed that is left out is random, as over HTTP. Raises InvalidRequestError.
    """
    body = read_options(LocalVideo, line.body, strict=False)
    check_references(body.image, body.video)
    if body.model not in (None, model):
        raise InvalidRequestError(
            f"got model {body.model!r}, expected one of: {model}", param="model"
        )
    shown = asked_size(body, model)
    size = sampled_size(shown, body, config)
    request = creation(body, model, size, shown, "default")
    files = {"width": size.width, "height": size.height}
    request = msgspec.structs.replace(
        request,
        request_id=line.custom_id,
        image=None if body.image is None else load_image(folder / body.image, **files),
        video=None if body.video is None else load_video(folder / body.video, **files),
        lora=None if body.lora is None else str((folder / body.lora).absolute()),
    )
    request.check_inputs()
    return request
