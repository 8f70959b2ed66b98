"""Damaged and malicious media files."""

import io
import random
import struct
import zlib
from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np
from PIL import Image

from helios_serve.media.mp4 import encode_chunk, split_segment
from helios_serve.video_request import Frames

PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"


def picture(kind: str = "PNG", width: int = 96, height: int = 64) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def movie(container: str = "mp4", codec: str = "libx264", frames: int = 40) -> bytes:
    """Return a video of a moving square, 64x64."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, rate=24)
        assert isinstance(stream, av.VideoStream)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 24)
        for index in range(frames):
            pixels = np.zeros((64, 64, 3), np.uint8)
            pixels[index % 32 :, : index % 64] = 255
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 24)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return buffer.getvalue()


def empty_movie() -> bytes:
    """Return the header of a fragmented MP4 without any frames."""
    data = encode_chunk(Frames(bytes(64 * 64 * 3), 1, 64, 64), chunk=0, fps=24)
    return data.header


def long_movie(chunks: int) -> bytes:
    """Return a fragmented MP4 that repeats the same 33 frames."""
    noise = np.random.default_rng(0).integers(0, 256, 33 * 64 * 64 * 3, dtype=np.uint8)
    first = encode_chunk(Frames(noise.tobytes(), 33, 64, 64), chunk=0, fps=30)
    data = first.header + first.fragment
    return first.header + b"".join(split_segment(data, chunk).fragment for chunk in range(chunks))


def sound() -> bytes:
    """Return an MP4 with audio only."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts = 48000, 0
        output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return buffer.getvalue()


def png(width: int, height: int, *chunks: tuple[bytes, bytes], rows: bytes = b"") -> bytes:
    """Return a PNG that declares the given size, with more chunks before its rows."""
    head = (b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n"
    for kind, content in (head, *chunks, (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")):
        checksum = zlib.crc32(kind + content)
        data += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)
    return data


def renamed_box(data: bytes, kind: bytes) -> bytes:
    """Return an MP4 without one of its boxes: its type is renamed."""
    at = data.index(kind)
    return data[:at] + b"junk" + data[at + 4 :]


def zeroed(data: bytes, start: float, stop: float) -> bytes:
    """Return the data with zeros from `start` to `stop`, given as fractions of its length."""
    first, last = int(start * len(data)), int(stop * len(data))
    return data[:first] + bytes(last - first) + data[last:]


def corpus() -> dict[str, bytes]:
    """Return files that are invalid references, by their fault."""
    mp4 = movie()
    big_text = zlib.compress(bytes(80 << 20), 9)
    return {
        "empty": b"",
        "text": b"a dog runs over a green hill" * 100,
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n(/etc/passwd) (r) file\n",
        "zip": b"PK\x03\x04" + bytes(200),
        "hls playlist": PLAYLIST,
        "concat script": b"ffconcat version 1.0\nfile '/etc/passwd'\n",
        "png cut": picture()[:2000],
        "png damaged": zeroed(picture(), 0.3, 0.6),
        "png head alone": picture()[:20],
        "png of 3600 megapixels": png(60_000, 60_000),
        "png of no pixels": png(0, 10),
        "png too large": png(9_000, 9_000, rows=bytes(1126 * 9_000)),
        "png with a text of 80 MiB": png(8, 8, (b"zTXt", b"a\0\0" + big_text), rows=bytes(16)),
        "jpeg cut": picture("JPEG")[:1500],
        "jpeg of 65500x65500": huge_jpeg(),
        "webp cut": picture("WEBP")[:1500],
        "gif of 65535x65535": b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b";",
        "gif cut": picture("GIF")[:900],
        "bmp of 100000x100000": b"BM"
        + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, 100_000, 100_000, 1, 24, 0, 0, 0, 0, 0, 0),
        "mp4 without moov": renamed_box(mp4, b"moov"),
        "mp4 without mdat": renamed_box(mp4, b"mdat")[: len(mp4) // 20],
        "mp4 of 0 frames": empty_movie(),
        "mp4 cut": mp4[: len(mp4) // 3],
        "mp4 with zeros for frames": zeroed(mp4, 0.02, 0.6),
        "mp4 of 5 frames": movie(frames=5),
        "mp4 with sound alone": sound(),
        "mkv cut": movie("matroska")[:900],
        "avi cut": movie("avi", "mpeg4")[:6000],
        "webm cut": movie("webm", "libvpx")[:900],
    }


def huge_jpeg() -> bytes:
    data = bytearray(picture("JPEG"))
    at = data.index(b"\xff\xc0") + 5
    struct.pack_into(">HH", data, at, 65500, 65500)
    return bytes(data)


def fuzzed(seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """Yield files with some bytes changed. A few of them can still be decoded."""
    draw = random.Random(seed)
    sources = {
        "png": picture(),
        "jpeg": picture("JPEG"),
        "webp": picture("WEBP"),
        "gif": picture("GIF"),
        "tiff": picture("TIFF"),
        "mp4": movie(),
        "mkv": movie("matroska"),
        "avi": movie("avi", "mpeg4"),
        "webm": movie("webm", "libvpx"),
    }
    for index in range(count):
        name = draw.choice(list(sources))
        data = bytearray(sources[name])
        for _ in range(draw.choice((1, 5, 50, 500))):
            # Heads are where lengths and sizes are.
            most = draw.choice((len(data), min(200, len(data))))
            data[draw.randrange(most)] = draw.randrange(256)
        if draw.random() < 0.2:
            del data[draw.randrange(len(data)) :]
        yield f"{name} {index}", bytes(data)
