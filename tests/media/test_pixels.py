"""Images and videos in memory, in the forms of common libraries."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from helios_serve.errors import InvalidRequestError
from helios_serve.media.decode_job import MediaKind
from helios_serve.media.pictures import frames_from
from helios_serve.media.references import TAIL_FRAMES

SIZE = {"width": 64, "height": 64}
PICTURE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
FORMS = {
    "pil": Image.fromarray(PICTURE),
    "array": PICTURE,
    "floats": PICTURE / 255,
    "tensor": torch.from_numpy(PICTURE),
    "tensor of a batch": torch.from_numpy(PICTURE)[None].float() / 255,
    "list": [Image.fromarray(PICTURE)],
}


@pytest.mark.parametrize("form", FORMS)
def test_an_image_is_the_same_in_every_form(form: str) -> None:
    frames = frames_from(FORMS[form], "image", **SIZE)
    assert (frames.count, frames.data) == (1, PICTURE.tobytes())


def test_an_image_may_be_a_file(tmp_path: Path) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "picture.png")
    assert frames_from(tmp_path / "picture.png", "image", **SIZE).data == PICTURE.tobytes()
    assert frames_from([str(tmp_path / "picture.png")], "image", **SIZE).data == PICTURE.tobytes()


def test_of_a_video_the_ends_are_kept() -> None:
    video = np.random.default_rng(1).integers(0, 256, (TAIL_FRAMES + 10, 64, 64, 3), np.uint8)
    for media in (video, [Image.fromarray(picture) for picture in video]):
        frames = frames_from(media, "video", **SIZE)
        assert (frames.count, frames.skipped) == (TAIL_FRAMES + 1, 9)
        assert frames.data == video[0].tobytes() + video[10:].tobytes()
    assert frames_from(video[:40], "video", **SIZE).data == video[:40].tobytes()


def test_another_shape_is_scaled_and_cut() -> None:
    wide = np.zeros((32, 128, 3), np.uint8)
    wide[:, 48:80] = 200
    frames = frames_from(wide, "image", **SIZE)
    pixels = np.frombuffer(frames.data, np.uint8).reshape(64, 64, 3)
    assert pixels[:, 8:-8].min() > 190


@pytest.mark.parametrize(
    ("media", "kind", "message"),
    [
        (PICTURE[..., 0], "image", r"got image as ndarray of uint8 \[64, 64\], expected a path"),
        (PICTURE.astype(np.int64), "image", r"ndarray of int64 \[64, 64, 3\], expected a path"),
        (PICTURE / 1.0, "image", "got image as floats from 0 to 255, expected"),
        (PICTURE / 255 * 2 - 1, "image", "got image as floats from -1 to 1, expected"),
        ([PICTURE, PICTURE], "image", "got 2 images, expected one"),
        (7, "image", r"got image as int of int64 \[\], expected"),
        (PICTURE, "video", "got a video of 1 frames, expected at least 33"),
        ("no/such.mp4", "video", "no such file"),
    ],
)
def test_what_is_no_picture_is_refused(media: Any, kind: MediaKind, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        frames_from(media, kind, **SIZE)
