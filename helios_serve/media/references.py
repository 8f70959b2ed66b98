"""Decodes reference images and videos and fits them to the size of the video to generate.

All functions raise InvalidRequestError for files that are invalid, unsupported or too large.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import av
from av.error import FFmpegError
from PIL import Image, ImageOps, UnidentifiedImageError

from helios_serve.errors import InvalidRequestError
from helios_serve.media.decode_job import MediaKind
from helios_serve.model_config import CHUNK_FRAMES, CHUNK_LATENTS, HISTORY_FRAMES
from helios_serve.video_request import Frames

MAX_SIDE = 16384
"""Maximum width and height of a reference, in pixels."""
MAX_PIXELS = 64_000_000
"""Maximum pixels of a frame of a reference."""
MAX_BYTES = 2 << 30
"""Maximum bytes of a decoded reference at the video's size: 2900 frames at 640x384."""
MAX_SECONDS = 600
MAX_FRAMES = 18_000
"""Maximum length of a video of which only the ends are kept: ten minutes at 30 frames/s."""
TAIL_FRAMES = CHUNK_FRAMES * -(-HISTORY_FRAMES // CHUNK_LATENTS)
"""Frames at the end of a video that V2V reads: whole chunks that fill the history."""
MAX_THREADS = 4
"""Threads of a video decoder."""

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""Accepted image formats. Pillow also supports some that run other programs, such as EPS."""
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,mpegts,mpeg,ogg,flv"
"""Accepted video formats. FFmpeg also supports some that refer to other files, like playlists."""
OPEN_OPTIONS = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


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
    if kind == "image":
        return Reference(kind, load_image(path, width=width, height=height))
    return Reference(kind, load_video_ends(path, width=width, height=height))


def is_image(path: Path) -> bool:
    """Return whether the file is an image, judging by its first bytes."""
    try:
        with Image.open(path, formats=IMAGE_FORMATS):
            return True
    except UnidentifiedImageError:
        return False
    except OSError:  # a damaged image
        return True


def load_image(path: Path, *, width: int, height: int) -> Frames:
    """Load the image in `path` as one frame of width x height."""
    check_exists(path, "image")
    return Frames(fit(open_image(path, "image"), width, height).tobytes(), 1, height, width)


def load_video(path: Path, *, width: int, height: int) -> Frames:
    """Load all frames of a video file, or of a folder of images in the order of their names.

    Raises InvalidRequestError for fewer than 33 frames or more than `MAX_BYTES` of them.
    """
    check_exists(path, "video")
    source = read_folder(path) if path.is_dir() else read_video(path)
    max_frames = MAX_BYTES // (width * height * 3)
    data, count = bytearray(), 0
    for image in source:
        if count == max_frames:
            got = f"more than {max_frames} frames"
            raise invalid(path, got, f"at most {max_frames} at {width}x{height}", "video")
        data += fit(image, width, height).tobytes()
        count += 1
    check_length(path, count)
    return Frames(bytes(data), count, height, width)


def load_video_ends(path: Path, *, width: int, height: int) -> Frames:
    """Load the first frame of a video file and its last 99, which are all that V2V reads.

    The frames between them are decoded, because later frames depend on them, and counted in
    `skipped`.
    """
    count = sum(1 for _ in read_frames(path, MAX_FRAMES))
    check_length(path, count)
    first_kept = max(1, count - TAIL_FRAMES)
    kept, max_frames = 1 + count - first_kept, MAX_BYTES // (width * height * 3)
    if kept > max_frames:
        raise invalid(path, f"{kept} frames", f"at most {max_frames} at {width}x{height}", "video")
    data = bytearray()
    for index, frame in enumerate(read_frames(path, count)):
        if index == 0 or index >= first_kept:
            data += fit(as_image(frame), width, height).tobytes()
    return Frames(bytes(data), kept, height, width, skipped=first_kept - 1)


def read_folder(folder: Path) -> Iterator[Image.Image]:
    names = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not names:
        raise invalid(folder, "a folder without images", "a video file or images", "video")
    for path in names:
        yield open_image(path, "video")


def read_video(path: Path) -> Iterator[Image.Image]:
    return map(as_image, read_frames(path))


def read_frames(path: Path, max_frames: int | None = None) -> Iterator[av.VideoFrame]:
    """Iterate over the frames of a video file while it is decoded.

    With `max_frames`, a longer video raises InvalidRequestError: before the first frame if its
    header states a duration above `MAX_SECONDS`, else when the limit is reached.
    """
    try:
        with av.open(str(path), container_options=OPEN_OPTIONS) as container:
            if not container.streams.video:
                raise invalid(path, "a file without a video stream", "a video file", "video")
            stream = container.streams.video[0]
            check_size(path, stream.width, stream.height, "video")
            if max_frames is not None:
                check_duration(path, container.duration)
            stream.thread_type = "AUTO"
            stream.codec_context.thread_count = MAX_THREADS
            for count, frame in enumerate(container.decode(stream)):
                check_size(path, frame.width, frame.height, "video")
                if count == max_frames:
                    got = f"more than {max_frames} frames"
                    raise invalid(path, got, f"at most {max_frames}", "video")
                yield frame
    except (FFmpegError, OSError) as error:
        raise invalid(path, reason(error), "a video file that FFmpeg reads", "video") from error


def as_image(frame: av.VideoFrame) -> Image.Image:
    """Convert a frame to RGB, rotated as its metadata says."""
    image = Image.fromarray(frame.to_ndarray(format="rgb24"))
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image


def open_image(path: Path, param: str) -> Image.Image:
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            check_size(path, *image.size, param)
            upright = ImageOps.exif_transpose(image)
            return upright.convert("RGB")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError) as error:
        raise invalid(path, reason(error), "an image such as PNG or JPEG", param) from error


def fit(image: Image.Image, width: int, height: int) -> Image.Image:
    """Scale an image to cover width x height and crop the excess equally on both sides."""
    return ImageOps.fit(image.convert("RGB"), (width, height), Image.Resampling.LANCZOS)


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


def check_exists(path: Path, param: str) -> None:
    if not path.exists():
        raise invalid(path, "no such file", "an existing file", param)


def check_length(path: Path, count: int) -> None:
    if count < CHUNK_FRAMES:
        raise invalid(path, f"a video of {count} frames", f"at least {CHUNK_FRAMES}", "video")


def check_duration(path: Path, duration: int | None) -> None:
    """Raise InvalidRequestError for a duration, in microseconds, of more than `MAX_SECONDS`."""
    if duration is not None and duration > MAX_SECONDS * av.time_base:
        got = f"a video of {duration / av.time_base:.0f} seconds"
        raise invalid(path, got, f"at most {MAX_SECONDS}", "video")


def check_size(path: Path, width: int, height: int, param: str) -> None:
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE and width * height <= MAX_PIXELS):
        expected = f"sides up to {MAX_SIDE} and at most {MAX_PIXELS} pixels"
        raise invalid(path, f"{width}x{height} pixels", expected, param)


def reason(error: Exception) -> str:
    """Return the message of an error without the file's name, which `invalid` adds."""
    if isinstance(error, UnidentifiedImageError):
        return "an unsupported file format"
    return getattr(error, "strerror", None) or str(error)


def invalid(path: Path, got: str, expected: str, param: str) -> InvalidRequestError:
    return InvalidRequestError(f"{path}: got {got}, expected {expected}", param=param)
