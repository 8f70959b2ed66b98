"""Video files as phones, cameras, recorders and editors write them."""

import io
import struct
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from numpy.typing import NDArray
from PIL import Image

from tests.support.picture_files import jpeg, quarters

RATE = 24
COUNT = 34
Pixels = NDArray[np.uint8]


def video(
    pictures: Sequence[Pixels],
    *,
    container: str = "mp4",
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    times: Sequence[int] | None = None,
    time_base: Fraction = Fraction(1, RATE),
    aspect: Fraction | None = None,
    options: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
) -> bytes:
    """Return a video of RGB pictures. `times` are their timestamps in `time_base`."""
    # A file, because an index in front is written in a second pass.
    with tempfile.NamedTemporaryFile() as file:
        with av.open(file.name, "w", format=container, container_options=muxer or {}) as output:
            stream = output.add_stream(codec, rate=RATE, options=options or {})
            assert isinstance(stream, av.VideoStream)
            stream.height, stream.width = pictures[0].shape[:2]
            stream.pix_fmt = pixel_format
            stream.codec_context.time_base = time_base
            if codec in ("libx264", "libx265"):
                stream.codec_context.max_b_frames = 0
            if aspect is not None:
                stream.codec_context.sample_aspect_ratio = aspect
            for index, pixels in enumerate(pictures):
                frame = av.VideoFrame.from_ndarray(
                    pixels, format="rgba" if pixels.shape[2] == 4 else "rgb24"
                )
                frame.pts, frame.time_base = index if times is None else times[index], time_base
                output.mux(stream.encode(frame))
            output.mux(stream.encode())
        return Path(file.name).read_bytes()


def counted(count: int = COUNT, width: int = 128, height: int = 64) -> list[Pixels]:
    """Grey pictures, each 4 levels brighter than the one before."""
    return [np.full((height, width, 3), 40 + 4 * index, np.uint8) for index in range(count)]


def still(count: int = COUNT, image: Image.Image | None = None) -> list[Pixels]:
    return [np.asarray(image or quarters())] * count


def with_matrix(data: bytes, a: int, b: int, c: int, d: int) -> bytes:
    """Return an MP4 with this display matrix, given as integers."""
    changed, at = bytearray(data), data.find(b"tkhd")
    at += 8 + (32 if data[at + 4] else 20) + 16
    one = 1 << 16
    struct.pack_into(">9i", changed, at, a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    return bytes(changed)


def plain(
    levels: tuple[int, int, int],
    *,
    pixel_format: str = "yuv420p",
    size: tuple[int, int] = (128, 64),
    matrix: Colorspace | None = None,
    full_range: bool | None = None,
    primaries: ColorPrimaries | None = None,
    transfer: ColorTrc | None = None,
    x265: str = "",
) -> bytes:
    """Return losslessly encoded frames of one color, given as code values of Y, U and V."""
    is_deep = "10" in pixel_format
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        codec, options = "libx264", {"qp": "0"}
        if is_deep:
            codec = "libx265"
            options = {"x265-params": f"log-level=none:lossless=1:{x265}".rstrip(":")}
        stream = output.add_stream(codec, rate=RATE, options=options)
        assert isinstance(stream, av.VideoStream)
        (stream.width, stream.height), stream.pix_fmt = size, pixel_format
        context = stream.codec_context
        if matrix is not None:
            context.colorspace = matrix
        if full_range is not None:
            context.color_range = ColorRange.JPEG if full_range else ColorRange.MPEG
        if primaries is not None:
            context.color_primaries = primaries
        if transfer is not None:
            context.color_trc = transfer
        for index in range(COUNT):
            frame = av.VideoFrame(*size, pixel_format)
            for plane, level in zip(frame.planes, levels, strict=True):
                samples = np.full(
                    plane.buffer_size // (1 + is_deep), level, "<u2" if is_deep else "u1"
                )
                plane.update(samples.tobytes())
            if full_range is not None:
                frame.color_range = context.color_range
            frame.pts, frame.time_base = index, Fraction(1, RATE)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return buffer.getvalue()


def matroska_with_cover(*, attached: bool) -> bytes:
    """Return a Matroska file with a cover before the video, as an attachment or as a track."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as output:
        if attached:
            output.add_attachment("cover.jpg", "image/jpeg", jpeg(quarters()))
        else:
            cover = output.add_stream("mjpeg", rate=1)
            assert isinstance(cover, av.VideoStream)
            cover.width, cover.height, cover.pix_fmt = 128, 64, "yuvj420p"
        track = output.add_stream("libx264", rate=RATE)
        assert isinstance(track, av.VideoStream)
        track.width, track.height, track.pix_fmt = 128, 64, "yuv420p"
        if not attached:
            packet = av.Packet(jpeg(quarters()))
            packet.stream, packet.pts, packet.dts, packet.time_base = cover, 0, 0, Fraction(1, 1000)
            output.mux(packet)
        for index, pixels in enumerate(counted()):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, RATE)
            output.mux(track.encode(frame))
        output.mux(track.encode())
    return buffer.getvalue()


def boxed(kind: bytes, *parts: bytes) -> bytes:
    content = b"".join(parts)
    return struct.pack(">I4s", len(content) + 8, kind) + content
