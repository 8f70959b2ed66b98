"""Reference images and videos, decoded and brought to the size of the video to make."""

from collections.abc import Iterator
from pathlib import Path

import av
from av.error import FFmpegError
from PIL import Image, ImageOps, UnidentifiedImageError

from helios_serve.errors import InvalidRequestError
from helios_serve.model_config import CHUNK_FRAMES
from helios_serve.sampling_params import Frames

MAX_SIDE = 16384
MAX_PIXELS = 64_000_000
MAX_BYTES = 2 << 30
"""The longest reference video, decoded at the size of the video to make: 2900 frames at 640x384."""

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


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
    if count < CHUNK_FRAMES:
        raise invalid(path, f"a video of {count} frames", f"at least {CHUNK_FRAMES}", "video")
    return Frames(bytes(data), count, height, width)


def read_folder(folder: Path) -> Iterator[Image.Image]:
    names = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not names:
        raise invalid(folder, "a folder without images", "a video file or images", "video")
    for path in names:
        yield open_image(path, "video")


def read_video(path: Path) -> Iterator[Image.Image]:
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise invalid(path, "a file without a video stream", "a video file", "video")
            stream = container.streams.video[0]
            check_size(path, stream.width, stream.height, "video")
            stream.thread_type = "AUTO"
            for frame in container.decode(stream):
                image = Image.fromarray(frame.to_ndarray(format="rgb24"))
                yield image.rotate(frame.rotation, expand=True) if frame.rotation else image
    except (FFmpegError, OSError) as error:
        raise invalid(path, f"{error}", "a video file that FFmpeg reads", "video") from error


def open_image(path: Path, param: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            check_size(path, *image.size, param)
            upright = ImageOps.exif_transpose(image)
            return upright.convert("RGB")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError) as error:
        raise invalid(path, f"{error}", "a picture such as PNG or JPEG", param) from error


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


def check_size(path: Path, width: int, height: int, param: str) -> None:
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE and width * height <= MAX_PIXELS):
        expected = f"sides up to {MAX_SIDE} and {MAX_PIXELS} pixels at most"
        raise invalid(path, f"{width}x{height} pixels", expected, param)


def invalid(path: Path, got: str, expected: str, param: str) -> InvalidRequestError:
    return InvalidRequestError(f"{path}: got {got}, expected {expected}", param=param)
