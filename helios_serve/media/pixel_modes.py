"""Converts pictures of every pixel mode to 8-bit sRGB.

Pillow's `convert("RGB")` alone clips 16-bit and float pixels at 255, drops alpha, and ignores ICC
profiles.
"""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from helios_serve.errors import HeliosError

BACKGROUND = (255, 255, 255)
"""What shows through transparent pixels: white, as when an editor flattens a picture."""
INTEGER_RANGES = (255, 65535, (1 << 31) - 1)
"""Ranges of 32-bit integers: the smallest that holds the largest pixel applies."""
FLOAT_RANGES = (1, 255, 65535)
"""Ranges of floats, likewise. Pixels up to twice the range are clipped: resampling overshoots."""
WHITE_IS_ZERO = 0
BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262
"""Tags of a TIFF."""

Pixels = NDArray[Any]


def as_rgb(image: Image.Image) -> Image.Image:
    """Return a picture as 8-bit sRGB, composited onto `BACKGROUND` where it is transparent.

    Pixels are scaled by their own range: 16-bit grey from 0 to 65535, 32-bit integers and floats by
    `INTEGER_RANGES` and `FLOAT_RANGES`. An ICC profile that applies to the picture is converted to
    sRGB. Raises HeliosError for NaN, infinity and floats out of range.
    """
    image.load()
    colors, alpha = split_alpha(image)
    rgb = to_srgb(colors, image.info.get("icc_profile"))
    if alpha is None:
        return rgb
    background = Image.new("RGB", rgb.size, BACKGROUND)
    background.paste(rgb, mask=alpha)
    return background


def split_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Return the colors of a picture in an 8-bit mode, and its alpha (L); None if it has none."""
    if image.mode.startswith(("I", "F")):
        return split_wide(image)
    if not image.has_transparency_data:
        return (image.convert("RGB") if image.mode in ("P", "PA") else image), None
    grey = image.mode in ("1", "L", "LA", "La")
    both = image.convert("LA" if grey else "RGBA")
    return both.convert("L" if grey else "RGB"), both.getchannel("A")


def split_wide(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Like `split_alpha`, for one channel of 16-bit, 32-bit or float pixels."""
    pixels = np.asarray(image)
    alpha = None
    key = image.info.get("transparency")
    if isinstance(key, int):  # a gray level that a PNG declares transparent
        alpha = Image.fromarray(np.where(pixels == key, 0, 255).astype(np.uint8))
    scaled = pixels.astype(np.float64) * (255 / wide_range(image, pixels))
    grey = scaled.round().clip(0, 255).astype(np.uint8)
    if getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO:
        grey = 255 - grey
    return Image.fromarray(grey), alpha


def wide_range(image: Image.Image, pixels: Pixels) -> int:
    """Return the pixel value that means white."""
    if image.mode.startswith("I;16"):
        (bits,) = getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (16,))
        return int((1 << bits) - 1)
    largest = float(pixels.max())
    is_float = image.mode == "F"
    if is_float and not np.isfinite(pixels).all():
        raise HeliosError("pixels that are NaN or infinite")
    for white in FLOAT_RANGES if is_float else INTEGER_RANGES:
        if largest <= (2 * white if is_float else white):
            return white
    raise HeliosError(f"pixels up to {largest:g}")


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert an 8-bit picture to sRGB.

    Browsers ignore a profile that is damaged or describes other channels than the picture's, and so
    does this function: the picture is then taken as sRGB.
    """
    if profile and image.mode in ("RGB", "L", "CMYK", "LAB"):
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if "sRGB" not in ImageCms.getProfileDescription(source):
                return convert_profile(image, source)
        except (ImageCms.PyCMSError, OSError, ValueError):
            pass
    return image.convert("RGB")


def convert_profile(image: Image.Image, source: ImageCms.ImageCmsProfile) -> Image.Image:
    converted = ImageCms.profileToProfile(
        image,
        source,
        ImageCms.createProfile("sRGB"),
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        outputMode="RGB",
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    assert converted is not None  # only an in-place conversion returns None
    return converted
