"""Picture files as cameras, scanners and editors write them, and invalid ones."""

import io
import struct
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

WIDTH, HEIGHT = 128, 64
ENTRIES = {
    "description as rational": (0x10E, 5, 1, bytes(4)),
    "resolution as text": (0x11A, 2, 1, bytes(4)),
    "resolution beyond the end": (0x11A, 5, 1, b"\xff\xff\0\0"),
    "text longer than the block": (0x10F, 2, 1 << 30, bytes(4)),
    "unknown type": (0x131, 99, 1, bytes(4)),
    "sub-directory that is its own parent": (0x8769, 4, 1, struct.pack("<I", 8)),
    "sub-directory beyond the end": (0x8825, 4, 1, b"\xff\xff\xff\x7f"),
}
"""Odd EXIF tags: tag, type, count and value."""


def quarters() -> Image.Image:
    """Return a picture with red and green quarters above blue and grey ones."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    top, left = slice(HEIGHT // 2), slice(WIDTH // 2)
    bottom, right = slice(HEIGHT // 2, None), slice(WIDTH // 2, None)
    pixels[top, left], pixels[top, right] = (255, 0, 0), (0, 255, 0)
    pixels[bottom, left], pixels[bottom, right] = (0, 0, 255), (200, 200, 200)
    return Image.fromarray(pixels)


def exif_block(
    *entries: tuple[int, int, int, bytes], turn: int = 6, big_endian: bool = False
) -> bytes:
    """Return an EXIF block with an orientation among other entries, and a wrong `next` offset."""
    order = ">" if big_endian else "<"
    rows = sorted([(0x112, 3, 1, struct.pack(f"{order}HH", turn, 0)), *entries])
    head = (b"MM\0*" if big_endian else b"II*\0") + struct.pack(f"{order}IH", 8, len(rows))
    body = b"".join(struct.pack(f"{order}HHI", *row[:3]) + row[3] for row in rows)
    return b"Exif\0\0" + head + body + b"\xff\xff\xff\x7f"


def jpeg(image: Image.Image, exif: bytes = b"") -> bytes:
    """Return a JPEG with an EXIF block that Pillow did not write."""
    data = encoded(image, "JPEG", quality=95, subsampling=0)
    if not exif:
        return data
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def swapped_profile() -> bytes:
    """Return an ICC profile of sRGB with its red and green primaries swapped."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    tags = {}
    for index in range(struct.unpack_from(">I", data, 128)[0]):
        at = 132 + 12 * index
        tags[bytes(data[at : at + 4])] = at
    red, green = tags[b"rXYZ"], tags[b"gXYZ"]
    data[red : red + 4], data[green : green + 4] = b"gXYZ", b"rXYZ"
    at = struct.unpack_from(">I", data, tags[b"desc"] + 4)[0]
    length = struct.unpack_from(">I", data, tags[b"desc"] + 8)[0]
    data[at : at + length] = data[at : at + length].replace(
        "sRGB".encode("utf-16-be"), "swap".encode("utf-16-be")
    )
    return bytes(data)
