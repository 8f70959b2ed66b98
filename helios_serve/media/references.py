"""Decodes reference images and videos and fits them to the size of the video to generate.

All functions raise InvalidRequestError for files that are invalid, unsupported or too large.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from helios_serve.media import image_file, video_file
from helios_serve.media.decode_job import MediaKind
from helios_serve.media.image_file import SUFFIXES, is_image, open_image
from helios_serve.media.refusals import check_exists, invalid, refusing
from helios_serve.media.video_file import FrameLimit, constant_rate, is_video, read_pictures
from helios_serve.media.video_frame import Picture
from helios_serve.model_config import CHUNK_FRAMES, CHUNK_LATENTS, HISTORY_FRAMES
from helios_serve.size import Size
from helios_serve.video_request import Frames

MAX_BYTES = 2 << 30
"""Maximum bytes of a decoded reference at the video's size: 2900 frames at 640x384."""
MAX_FRAMES = 18_000
"""Maximum length of a video of which only the ends are kept: ten minutes at 30 frames/s."""
TAIL_FRAMES = CHUNK_FRAMES * -(-HISTORY_FRAMES // CHUNK_LATENTS)
"""Frames at the end of a video that V2V reads: whole chunks that fill the history."""
EXPECTED = "a valid image or video"
DIGITS = re.compile("([0-9]+)")


class Reference(NamedTuple):
    """A decoded reference: one frame for an image, or the frames of a video."""

    kind: MediaKind
    frames: Frames


def load_reference(
    path: Path, *, width: int, height: int, kind: MediaKind | None = None
) -> Reference:
    """Load an image, or the ends of a video (see `load_video_ends`), at width x height.

    With None for `kind` the content determines which one it is.
    """
    check_exists(path, kind or "image")
    if kind is None:
        kind = "image" if is_image(path) else "video"
        if kind == "video" and not is_video(path):
            expected = f"{image_file.EXPECTED}, or {video_file.EXPECTED}"
            raise invalid(path, video_file.UNREADABLE, expected, "image")
    if kind == "image":
        return Reference(kind, load_image(path, width=width, height=height))
    return Reference(kind, load_video_ends(path, width=width, height=height))


def load_image(path: Path, *, width: int, height: int) -> Frames:
    """Load the image in `path` as one frame of width x height."""
    check_exists(path, "image")
    with refusing(path, EXPECTED, "image"):
        return Frames(fit(open_image(path, "image"), width, height).tobytes(), 1, height, width)


def load_video(path: Path, *, width: int, height: int) -> Frames:
    """Load all frames of a video file, or of a folder of images in the natural order of names.

    Raises InvalidRequestError for fewer than 33 frames or more than `MAX_BYTES` of them.
    """
    check_exists(path, "video")
    size = Size(width, height)
    most = MAX_BYTES // (width * height * 3)
    limit = FrameLimit(most, f"at most {most} at {size}")
    if path.is_dir():
        return load_folder(path, size, limit)
    shown = constant_rate(path, limit)
    check_length(path, len(shown))
    return Frames(pixels(path, read_pictures(path, shown, size), size), len(shown), height, width)


def load_folder(folder: Path, size: Size, limit: FrameLimit) -> Frames:
    names = image_files(folder)
    if not names:
        raise invalid(folder, "a folder without images", "a video file or images", "video")
    if len(names) > limit.frames:
        raise invalid(folder, f"more than {limit.frames} frames", limit.expected, "video")
    check_length(folder, len(names))
    pictures = (Picture(open_image(path, "video"), 1.0) for path in names)
    return Frames(pixels(folder, pictures, size), len(names), size.height, size.width)


def load_video_ends(path: Path, *, width: int, height: int) -> Frames:
    """Load the first frame of a video file and its last 99, which are all that V2V reads.

    The frames between them are decoded, because later frames depend on them, and counted in
    `skipped`.
    """
    size = Size(width, height)
    shown = constant_rate(path, FrameLimit(MAX_FRAMES, f"at most {MAX_FRAMES}"))
    count = len(shown)
    check_length(path, count)
    first_kept = max(1, count - TAIL_FRAMES)
    kept = [shown[0], *shown[first_kept:]]
    most = MAX_BYTES // (width * height * 3)
    if len(kept) > most:
        raise invalid(path, f"{len(kept)} frames", f"at most {most} at {size}", "video")
    data = pixels(path, read_pictures(path, kept, size), size)
    return Frames(data, len(kept), height, width, skipped=first_kept - 1)


def pixels(path: Path, pictures: Iterable[Picture], size: Size) -> bytes:
    """Return the pictures at the given size, as in `Frames.data`."""
    data = bytearray()
    with refusing(path, EXPECTED, "video"):
        for image, pixel_aspect in pictures:
            data += fit(image, *size, pixel_aspect=pixel_aspect).tobytes()
    return bytes(data)


def image_files(folder: Path) -> list[Path]:
    """Return the images in a folder in natural order: frame2 before frame10.

    Hidden files are left out: macOS puts `._frame.png`, which is not an image, next to `frame.png`.
    """
    found = (
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
    return sorted(found, key=lambda path: natural_key(path.name))


def natural_key(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Return the key that sorts runs of digits by their value, then names that differ in zeros."""
    parts = DIGITS.split(name.lower())
    return [
        (0, int(part), "") if number % 2 else (1, 0, part)
        for number, part in enumerate(parts)
        if part
    ], name


def fit(image: Image.Image, width: int, height: int, *, pixel_aspect: float = 1.0) -> Image.Image:
    """Scale an image to cover width x height and crop the excess equally on both sides.

    `pixel_aspect` is the width of the image's pixels, relative to their height.
    """
    shape = width / height / pixel_aspect  # of the part to keep, in pixels of the image
    kept_width = min(image.width, round(image.height * shape, 6))
    kept_height = min(image.height, round(image.width / shape, 6))
    left, top = (image.width - kept_width) / 2, (image.height - kept_height) / 2
    box = (left, top, left + kept_width, top + kept_height)
    return image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS, box)


def fit_frames(frames: Frames, width: int, height: int) -> Frames:
    """Return the frames, each scaled and cropped by `fit`."""
    size = frames.height * frames.width * 3
    pictures = (
        Image.frombytes(
            "RGB", (frames.width, frames.height), frames.data[index * size : (index + 1) * size]
        )
        for index in range(frames.count)
    )
    data = b"".join(fit(picture, width, height).tobytes() for picture in pictures)
    return Frames(data, frames.count, height, width)


def check_length(path: Path, count: int) -> None:
    if count < CHUNK_FRAMES:
        raise invalid(path, f"a video of {count} frames", f"at least {CHUNK_FRAMES}", "video")
