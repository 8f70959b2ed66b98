"""Image files of users: all orientations, pixel modes and unusual metadata."""

import io
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from helios_serve.errors import InvalidRequestError
from helios_serve.media.image_file import SUFFIXES, is_image, open_image
from helios_serve.media.pictures import frames_from
from helios_serve.media.pixel_modes import as_rgb
from helios_serve.media.references import load_image, load_reference
from tests.support.picture_files import (
    ENTRIES,
    HEIGHT,
    WIDTH,
    encoded,
    exif_block,
    jpeg,
    quarters,
    swapped_profile,
    write,
)

UPRIGHT = {
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: pixels.transpose(1, 0, 2)[:, ::-1],
    7: lambda pixels: pixels[::-1, ::-1].transpose(1, 0, 2),
    8: lambda pixels: pixels.transpose(1, 0, 2)[::-1],
}
"""What each EXIF orientation means, as operations on rows and columns."""


def read(path: Path) -> NDArray[np.uint8]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return np.asarray(open_image(path, "image"))


def middle(path: Path) -> list[int]:
    pixels = read(path)
    return [int(value) for value in pixels[pixels.shape[0] // 2, pixels.shape[1] // 2]]


def is_near(got: NDArray[np.uint8], expected: NDArray[np.uint8], tolerance: float = 4) -> bool:
    assert got.shape == expected.shape
    return float(np.abs(got.astype(int) - expected.astype(int)).mean()) < tolerance


@pytest.mark.parametrize("turn", UPRIGHT)
@pytest.mark.parametrize("big_endian", [False, True])
def test_pictures_are_turned_by_their_orientation(
    turn: int, big_endian: bool, tmp_path: Path
) -> None:
    exif = exif_block(turn=turn, big_endian=big_endian)
    path = write(tmp_path / "photo.jpg", jpeg(quarters(), exif))
    assert is_near(read(path), UPRIGHT[turn](np.asarray(quarters())))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "AVIF", "MPO"])
@pytest.mark.parametrize("turn", [5, 6])
def test_orientation_counts_in_every_format(kind: str, turn: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x112] = turn
    data = encoded(quarters(), kind, exif=exif, quality=95)
    expected = UPRIGHT[turn](np.asarray(quarters()))
    assert is_near(read(write(tmp_path / "photo", data)), expected)


@pytest.mark.parametrize("odd", ENTRIES)
def test_other_exif_tags_change_nothing(odd: str, tmp_path: Path) -> None:
    path = write(tmp_path / "photo.jpg", jpeg(quarters(), exif_block(ENTRIES[odd])))
    assert is_near(read(path), UPRIGHT[6](np.asarray(quarters())))


@pytest.mark.parametrize(
    "exif",
    [b"Exif\0\0", b"Exif\0\0garbage and more", exif_block()[:16], exif_block(turn=77), b"nothing"],
    ids=["empty", "garbage", "cut", "orientation 77", "other block"],
)
def test_a_broken_exif_block_leaves_the_picture_as_it_is(exif: bytes, tmp_path: Path) -> None:
    path = write(tmp_path / "photo.jpg", jpeg(quarters(), exif))
    assert is_near(read(path), np.asarray(quarters()))


def test_a_picture_in_memory_is_turned_as_well() -> None:
    with Image.open(io.BytesIO(jpeg(quarters(), exif_block()))) as image:
        frames = frames_from(image, "image", width=HEIGHT, height=WIDTH)
    got = np.frombuffer(frames.data, np.uint8).reshape(WIDTH, HEIGHT, 3)
    assert is_near(got, UPRIGHT[6](np.asarray(quarters())))


def grey(value: float, dtype: Any) -> Image.Image:
    return Image.fromarray(np.full((HEIGHT, WIDTH), value, dtype))


@pytest.mark.parametrize(
    ("kind", "image", "expected"),
    [
        ("PNG", grey(0x8000, np.uint16), 128),
        ("PNG", grey(0xFFFF, np.uint16), 255),
        ("PNG", grey(0x0101, np.uint16), 1),
        ("TIFF", grey(0x4000, np.uint16), 64),
        ("TIFF", grey(100, np.int32), 100),
        ("TIFF", grey(0x8000, np.int32), 128),
        ("TIFF", grey(1 << 30, np.int32), 128),
        ("TIFF", grey(-5, np.int32), 0),
        ("TIFF", grey(0.25, np.float32), 64),
        ("TIFF", grey(1.2, np.float32), 255),
        ("TIFF", grey(64.0, np.float32), 64),
        ("TIFF", grey(0x4000, np.float32), 64),
    ],
)
def test_wide_pixels_are_scaled_by_their_range(
    kind: str, image: Image.Image, expected: int, tmp_path: Path
) -> None:
    path = write(tmp_path / "picture", encoded(image, kind))
    assert middle(path) == [expected] * 3


def test_a_tiff_of_16_bits_may_count_from_white(tmp_path: Path) -> None:
    data = encoded(grey(0x4000, np.uint16), "TIFF", tiffinfo={262: 0})
    assert middle(write(tmp_path / "picture", data)) == [191] * 3


def test_a_tiff_of_12_bits_has_its_own_range() -> None:
    image = grey(0x800, np.uint16)
    image.tag_v2 = {258: (12,)}  # type: ignore[attr-defined]
    assert as_rgb(image).getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize(
    ("kind", "image", "expected"),
    [
        ("PNG", Image.new("1", (WIDTH, HEIGHT), 1), [255, 255, 255]),
        ("PNG", Image.new("L", (WIDTH, HEIGHT), 77), [77, 77, 77]),
        ("JPEG", Image.new("CMYK", (WIDTH, HEIGHT), (0, 255, 255, 0)), [255, 0, 0]),
        ("TIFF", Image.new("CMYK", (WIDTH, HEIGHT), (0, 0, 0, 255)), [0, 0, 0]),
        ("TIFF", Image.new("LAB", (WIDTH, HEIGHT), (255, 128, 128)), [255, 255, 255]),
        ("TIFF", Image.new("YCbCr", (WIDTH, HEIGHT), (255, 128, 128)), [255, 255, 255]),
        ("BMP", Image.new("P", (WIDTH, HEIGHT), 0), [0, 0, 0]),
    ],
)
def test_pixel_modes_become_rgb(
    kind: str, image: Image.Image, expected: list[int], tmp_path: Path
) -> None:
    got = middle(write(tmp_path / "picture", encoded(image, kind)))
    assert np.abs(np.subtract(got, expected)).max() <= 2


def palette(**options: Any) -> bytes:
    image = Image.new("P", (WIDTH, HEIGHT), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    return encoded(image, **options)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (palette(kind="PNG", transparency=0), [200, 100, 50]),
        (palette(kind="PNG", transparency=1), [255, 255, 255]),
        (palette(kind="PNG", transparency=bytes([255, 128])), [227, 177, 152]),
        (palette(kind="GIF", transparency=1), [255, 255, 255]),
        (encoded(Image.new("LA", (WIDTH, HEIGHT), (100, 128)), "PNG"), [177] * 3),
        (encoded(Image.new("L", (WIDTH, HEIGHT), 100), "PNG", transparency=100), [255] * 3),
        (encoded(Image.new("L", (WIDTH, HEIGHT), 100), "PNG", transparency=99), [100] * 3),
        (encoded(grey(1000, np.uint16), "PNG", transparency=1000), [255] * 3),
        (
            encoded(Image.new("RGB", (WIDTH, HEIGHT), (1, 2, 3)), "PNG", transparency=(1, 2, 3)),
            [255] * 3,
        ),
        (encoded(Image.new("RGBA", (WIDTH, HEIGHT), (255, 0, 0, 0)), "AVIF"), [255] * 3),
        (encoded(Image.new("RGBA", (WIDTH, HEIGHT), (0, 0, 0, 51)), "TIFF"), [204] * 3),
    ],
    ids=[
        *("palette, opaque", "palette, transparent", "palette, half", "gif", "grey with alpha"),
        *("grey key", "other grey key", "16-bit key", "color key", "avif", "tiff"),
    ],
)
def test_transparent_pixels_show_white(data: bytes, expected: list[int], tmp_path: Path) -> None:
    got = middle(write(tmp_path / "picture", data))
    assert np.abs(np.subtract(got, expected)).max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "AVIF"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_icc_profiles_are_applied(kind: str, mode: str, tmp_path: Path) -> None:
    """Also below transparency, which a profile does not describe."""
    image = Image.new("RGB", (WIDTH, HEIGHT), (255, 0, 0)).convert(mode)
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(image, kind, icc_profile=swapped_profile(), **options)
    got = middle(write(tmp_path / "picture", data))
    assert np.abs(np.subtract(got, [0, 255, 0])).max() <= 3


@pytest.mark.parametrize("profile", [b"no profile", swapped_profile()[:200]])
def test_a_damaged_profile_is_ignored(profile: bytes, tmp_path: Path) -> None:
    data = encoded(quarters(), "PNG", icc_profile=profile)
    assert is_near(read(write(tmp_path / "picture", data)), np.asarray(quarters()))


def test_a_profile_of_other_channels_is_ignored(tmp_path: Path) -> None:
    image = Image.new("L", (WIDTH, HEIGHT), 77)
    path = write(tmp_path / "picture", encoded(image, "PNG", icc_profile=swapped_profile()))
    assert middle(path) == [77] * 3


@pytest.mark.parametrize(
    ("value", "message"),
    [(np.nan, "NaN or infinite"), (np.inf, "NaN or infinite"), (1e30, r"up to 1e\+30")],
)
def test_floats_without_a_range_are_refused(value: float, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "picture", encoded(grey(value, np.float32), "TIFF"))
    with pytest.raises(InvalidRequestError, match=f"picture: got pixels .*{message}, expected"):
        open_image(path, "image")
    with pytest.raises(InvalidRequestError, match=f"image: got pixels .*{message}, expected"):
        frames_from(grey(value, np.float32), "image", width=64, height=64)


def test_heic_is_read(tmp_path: Path) -> None:
    from pillow_heif import register_heif_opener

    register_heif_opener()
    image = quarters()
    image.info["exif"] = exif_block()[6:]  # the encoder stores it as a transformation
    path = write(tmp_path / "IMG_0001.HEIC", encoded(image, "HEIF", quality=95))
    assert is_image(path)
    assert is_near(read(path), UPRIGHT[6](np.asarray(quarters())), tolerance=8)
    assert load_reference(path, width=64, height=128).kind == "image"


def test_heic_without_its_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    path = write(tmp_path / "a", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
    for load in (load_image, load_reference):
        with pytest.raises(InvalidRequestError, match=r"got a HEIC image, .*helios-serve\[heif\]"):
            load(path, width=128, height=64)


def test_a_cut_avif_is_a_damaged_image(tmp_path: Path) -> None:
    data = encoded(quarters(), "AVIF")
    path = write(tmp_path / "a.avif", data[: len(data) // 2])
    for load in (load_image, load_reference):
        with pytest.raises(InvalidRequestError, match="got a damaged AVIF image, expected an im"):
            load(path, width=128, height=64)


def test_avif_without_its_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.init()
    monkeypatch.delitem(Image.OPEN, "AVIF")
    path = write(tmp_path / "a", b"\0\0\0\x18ftypavif\0\0\0\0mif1avif" + bytes(100))
    with pytest.raises(InvalidRequestError, match="got an AVIF image, expected PNG or JPEG"):
        load_image(path, width=128, height=64)


@pytest.mark.parametrize(
    "error", [KeyError("x"), TypeError("x"), SyntaxError("x"), EOFError(), ZeroDivisionError()]
)
def test_any_exception_of_a_decoder_is_a_refusal(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.png", encoded(quarters(), "PNG"))

    def fail(_: Image.Image) -> None:
        raise error

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load_prepare", fail)
    message = rf"a\.png: got {type(error).__name__} while decoding, expected"
    with pytest.raises(InvalidRequestError, match=message):
        load_image(path, width=128, height=64)


def test_suffixes_of_frames_are_those_of_accepted_formats() -> None:
    Image.init()
    accepted = {"PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF"}
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in accepted}
    assert SUFFIXES - {".heic", ".heif"} <= known
