"""Reference images and videos, decoded and brought to the size of the video to make."""

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
MAX_PIXELS = 64_000_000
MAX_BYTES = 2 << 30
"""The longest reference video, decoded at the size of the video to make: 2900 frames at 640x384."""
MAX_SECONDS = 600
MAX_FRAMES = 18_000
"""The longest video of which only the ends are kept: ten minutes, at 30 frames a second."""
TAIL_FRAMES = CHUNK_FRAMES * -(-HISTORY_FRAMES // CHUNK_LATENTS)
"""The end of a video that V2V looks at: what fills the history, in whole chunks."""
MAX_THREADS = 4

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""Pillow also knows formats that start other programs, such as EPS."""
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,mpegts,mpeg,ogg,flv"
"""FFmpeg also knows formats that name other files and hosts, such as playlists."""
OPEN_OPTIONS = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


class Reference(NamedTuple):
    """What a file holds, brought to the size of the video to make."""

    kind: MediaKind
    frames: Frames


def load_reference(
    path: Path, *, width: int, height: int, kind: MediaKind | None = None
) -> Reference:
    """An image, or the ends of a video; without `kind` the content says which.

    Raises InvalidRequestError.
    """
    check_exists(path, kind or "image")
    if kind is None:
        kind = "image" if is_image(path) else "video"
    if kind == "image":
        return Reference(kind, load_image(path, width=width, height=height))
    return Reference(kind, load_video_ends(path, width=width, height=height))


def is_image(path: Path) -> bool:
    """By its first bytes."""
    try:
        with Image.open(path, formats=IMAGE_FORMATS):
            return True
    except UnidentifiedImageError:
        return False
    except OSError:  # a broken one
        return True


def load_image(path: Path, *, width: int, height: int) -> Frames:
    """The image in `path` as one frame; raises InvalidRequestError."""
    check_exists(path, "image")
    return Frames(fit(open_image(path, "image"), width, height).tobytes(), 1, height, width)


def load_video(path: Path, *, width: int, height: int) -> Frames:
    """All frames of a video file, or of a folder of images in the order of their names."""
    check_exists(path, "video")
    source = read_folder(path) if path.is_dir() else read_video(path)
    most = MAX_BYTES // (width * height * 3)
    data, count = bytearray(), 0
    for image in source:
        if count == most:
            got = f"more than {most} frames"
            raise invalid(path, got, f"{most} at most at {width}x{height}", "video")
        data += fit(image, width, height).tobytes()
        count += 1
    check_length(path, count)
    return Frames(bytes(data), count, height, width)


def load_video_ends(path: Path, *, width: int, height: int) -> Frames:
    """The first frame of a video file and its last 99: what V2V looks at.

    The others are decoded, since each frame builds on those before it, and counted.
    """
    count = sum(1 for _ in read_frames(path, MAX_FRAMES))
    check_length(path, count)
    first_kept = max(1, count - TAIL_FRAMES)
    kept, most = 1 + count - first_kept, MAX_BYTES // (width * height * 3)
    if kept > most:
        raise invalid(path, f"{kept} frames", f"{most} at most at {width}x{height}", "video")
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


def read_frames(path: Path, most: int | None = None) -> Iterator[av.VideoFrame]:
    """The frames of a video file as they are decoded; with `most`, one that is longer is refused,
    at once where it says so itself."""
    try:
        with av.open(str(path), container_options=OPEN_OPTIONS) as container:
            if not container.streams.video:
                raise invalid(path, "a file without a video stream", "a video file", "video")
            stream = container.streams.video[0]
            check_size(path, stream.width, stream.height, "video")
            if most is not None:
                check_duration(path, container.duration)
            stream.thread_type = "AUTO"
            stream.codec_context.thread_count = MAX_THREADS
            for count, frame in enumerate(container.decode(stream)):
                check_size(path, frame.width, frame.height, "video")
                if count == most:
                    raise invalid(path, f"more than {most} frames", f"{most} at most", "video")
                yield frame
    except (FFmpegError, OSError) as error:
        raise invalid(path, reason(error), "a video file that FFmpeg reads", "video") from error


def as_image(frame: av.VideoFrame) -> Image.Image:
    """Upright, as the camera was held."""
    image = Image.fromarray(frame.to_ndarray(format="rgb24"))
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image


def open_image(path: Path, param: str) -> Image.Image:
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            check_size(path, *image.size, param)
            upright = ImageOps.exif_transpose(image)
            return upright.convert("RGB")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError) as error:
        raise invalid(path, reason(error), "a picture such as PNG or JPEG", param) from error


def fit(image: Image.Image, width: int, height: int) -> Image.Image:
    """Scale to cover width x height and cut what hangs over, equally on both sides."""
    return ImageOps.fit(image.convert("RGB"), (width, height), Image.Resampling.LANCZOS)


def fit_frames(frames: Frames, width: int, height: int) -> Frames:
    """All frames, each as `fit` has it."""
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
        raise invalid(path, "no such file", "one that exists", param)


def check_length(path: Path, count: int) -> None:
    if count < CHUNK_FRAMES:
        raise invalid(path, f"a video of {count} frames", f"at least {CHUNK_FRAMES}", "video")


def check_duration(path: Path, duration: int | None) -> None:
    """`duration` is what the file says, in millionths of a second."""
    if duration is not None and duration > MAX_SECONDS * av.time_base:
        got = f"a video of {duration / av.time_base:.0f} seconds"
        raise invalid(path, got, f"{MAX_SECONDS} at most", "video")


def check_size(path: Path, width: int, height: int, param: str) -> None:
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE and width * height <= MAX_PIXELS):
        expected = f"sides up to {MAX_SIDE} and {MAX_PIXELS} pixels at most"
        raise invalid(path, f"{width}x{height} pixels", expected, param)


def reason(error: Exception) -> str:
    """What went wrong, without the name of the file, which stands before it."""
    if isinstance(error, UnidentifiedImageError):
        return "a file of another kind"
    return getattr(error, "strerror", None) or str(error)


def invalid(path: Path, got: str, expected: str, param: str) -> InvalidRequestError:
    return InvalidRequestError(f"{path}: got {got}, expected {expected}", param=param)
