"""Opens image files, upright and as 8-bit RGB."""

import warnings
from pathlib import Path

from PIL import ExifTags, Image, UnidentifiedImageError

from helios_serve.media.pixel_modes import as_rgb
from helios_serve.media.refusals import check_size, invalid, refusing

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""Accepted image formats. Pillow also supports some that run other programs, such as EPS."""
SUFFIXES = {
    *(".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".avif", ".heic", ".heif"),
}
"""Suffixes of the images in a folder of frames."""
EXPECTED = "an image such as PNG or JPEG"
TRANSPOSED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How to turn a picture upright, by its EXIF orientation."""
BRAND_BYTES = 256
HEIF_BRANDS = (
    b"heic",
    b"heix",
    b"heim",
    b"heis",
    b"hevc",
    b"hevx",
    b"hevm",
    b"hevs",
    b"mif1",
    b"msf1",
)
AVIF_BRANDS = (b"avif", b"avis")


def open_image(path: Path, param: str) -> Image.Image:
    """Return the image in `path`, upright, as 8-bit RGB; of an animation, its first frame.

    Raises InvalidRequestError.
    """
    # A damaged EXIF block makes Pillow warn. Only its orientation matters here.
    with refusing(path, EXPECTED, param), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        formats = formats_for(path, param)
        try:
            image = Image.open(path, formats=formats)
        except UnidentifiedImageError as error:
            if formats == FORMATS:
                raise
            raise invalid(path, f"a damaged {formats[0]} image", EXPECTED, param) from error
        with image:
            check_size(path, *image.size, param)
            return upright(image)


def upright(image: Image.Image) -> Image.Image:
    """Return a picture as 8-bit RGB, turned by the orientation of its EXIF alone."""
    rgb = as_rgb(image)
    method = TRANSPOSED.get(orientation(image))
    return rgb if method is None else rgb.transpose(method)


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 if there is none that can be read."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
        if isinstance(value, tuple | list):
            value = value[0]
        return int(value)
    except Exception:  # whatever a damaged EXIF block raises
        return 1


def is_image(path: Path) -> bool:
    """Return whether the file is an image, judging by its first bytes.

    Raises InvalidRequestError for an image whose format needs a library that is not installed.
    """
    formats = formats_for(path, "image")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(path, formats=formats):
                return True
        except UnidentifiedImageError:
            return formats != FORMATS  # brands are those of an image
        except Exception:  # a damaged image
            return True


def formats_for(path: Path, param: str) -> tuple[str, ...]:
    """Return the formats that a file may have. HEIF and AVIF are distinguished by their brands."""
    brands = read_brands(path)
    if any(brand in brands for brand in AVIF_BRANDS):
        if not has_avif():
            raise invalid(path, "an AVIF image", "PNG or JPEG: this Pillow lacks AVIF", param)
        return ("AVIF",)
    if any(brand in brands for brand in HEIF_BRANDS):
        if not has_heif():
            expected = "PNG or JPEG, or a server with `pip install 'helios-serve[heif]'`"
            raise invalid(path, "a HEIC image", expected, param)
        return ("HEIF",)
    return FORMATS


def read_brands(path: Path) -> tuple[bytes, ...]:
    """Return the brands in the `ftyp` box at the start of a file; none for other files."""
    with path.open("rb") as file:
        head = file.read(BRAND_BYTES)
    if head[4:8] != b"ftyp":
        return ()
    box = head[: int.from_bytes(head[:4], "big")]
    return tuple(box[start : start + 4] for start in (8, *range(16, len(box), 4)))


def has_avif() -> bool:
    Image.init()
    return "AVIF" in Image.OPEN


def has_heif() -> bool:
    """Return whether pillow-heif is installed, and register it with Pillow."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener(thumbnails=False)
    return True
