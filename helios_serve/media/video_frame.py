"""Converts decoded video frames to upright 8-bit RGB pictures."""

import struct
from typing import NamedTuple

import av
import numpy as np
from av.sidedata.sidedata import Type
from av.video.reformatter import (
    ColorPrimaries,
    Colorspace,
    ColorTrc,
    Interpolation,
)
from PIL import Image

from helios_serve.media.pixel_modes import as_rgb
from helios_serve.media.tone_map import (
    DEFAULT_PEAK,
    MAX_PEAK,
    SDR_WHITE,
    ColorSpace,
    Transfer,
    to_sdr,
)
from helios_serve.size import Size

TRANSFERS: dict[int, Transfer] = {ColorTrc.SMPTE2084: "pq", ColorTrc.ARIB_STD_B67: "hlg"}
PRIMARIES: dict[int, str] = {
    ColorPrimaries.BT2020: "bt2020",
    ColorPrimaries.SMPTE431: "p3",
    ColorPrimaries.SMPTE432: "p3",
}
UNSPECIFIED_MATRIX = 2
HD_WIDTH, HD_HEIGHT = 1280, 576
"""Frames from this width, or above this height, use the matrix of BT.709 if they state none, and
smaller ones that of BT.601, as in players."""
TURNS = {
    (False, False, False): None,
    (False, True, False): Image.Transpose.FLIP_LEFT_RIGHT,
    (False, False, True): Image.Transpose.FLIP_TOP_BOTTOM,
    (False, True, True): Image.Transpose.ROTATE_180,
    (True, False, False): Image.Transpose.TRANSPOSE,
    (True, True, False): Image.Transpose.ROTATE_270,
    (True, False, True): Image.Transpose.ROTATE_90,
    (True, True, True): Image.Transpose.TRANSVERSE,
}
"""Transpositions by three flags: the axes are swapped, then x is mirrored, and y is mirrored."""
SWAPPING = {turn for (swaps, _, _), turn in TURNS.items() if swaps}
SCALING = Interpolation.LANCZOS | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT


class Picture(NamedTuple):
    """An upright RGB picture whose pixels are `pixel_aspect` times as wide as high."""

    image: Image.Image
    pixel_aspect: float


def as_picture(frame: av.VideoFrame, pixel_aspect: float, size: Size) -> Picture:
    """Convert a frame to 8-bit BT.709, turned and mirrored as its display matrix says.

    HDR and wide-gamut frames are first scaled down to cover `size`, because converting the colors
    of large frames takes long. Transparent frames are composited.
    """
    turn = display_turn(frame)
    if turn in SWAPPING:
        size, pixel_aspect = Size(size.height, size.width), 1 / pixel_aspect
    image = colors_of(frame, size)
    return Picture(image if turn is None else image.transpose(turn), pixel_aspect)


def colors_of(frame: av.VideoFrame, size: Size) -> Image.Image:
    """Return the frame in 8-bit BT.709, as it is stored."""
    matrix, source = source_matrix(frame), color_space(frame)
    if source is not None:
        scale = min(1.0, max(size.width / frame.width, size.height / frame.height))
        scaled = frame.reformat(
            width=max(1, round(frame.width * scale)),
            height=max(1, round(frame.height * scale)),
            format="rgb48le",
            src_colorspace=matrix,
            interpolation=SCALING,
        )
        return Image.fromarray(to_sdr(scaled.to_ndarray().astype(np.uint16, copy=False), source))
    if has_alpha(frame):
        pixels = frame.reformat(format="rgba", src_colorspace=matrix).to_ndarray()
        return as_rgb(Image.fromarray(pixels))
    return Image.fromarray(frame.reformat(format="rgb24", src_colorspace=matrix).to_ndarray())


def source_matrix(frame: av.VideoFrame) -> Colorspace | None:
    """Return the YUV matrix to assume for a frame that states none; None if it states one."""
    if frame.colorspace != UNSPECIFIED_MATRIX or frame.format.is_rgb:
        return None
    if PRIMARIES.get(frame.color_primaries) == "bt2020":
        return Colorspace.BT2020
    is_hd = frame.width >= HD_WIDTH or frame.height > HD_HEIGHT
    return Colorspace.ITU709 if is_hd else Colorspace.ITU601


def color_space(frame: av.VideoFrame) -> ColorSpace | None:
    """Return how to read the colors of an HDR or wide-gamut frame; None for SDR in BT.709."""
    transfer = TRANSFERS.get(frame.color_trc, "sdr")
    default = "bt709" if transfer == "sdr" else "bt2020"
    primaries = PRIMARIES.get(frame.color_primaries, default)
    if frame.color_primaries == ColorPrimaries.BT709:
        primaries = "bt709"
    if transfer == "sdr" and primaries == "bt709":
        return None
    peak = stated_peak(frame) if transfer == "pq" else DEFAULT_PEAK
    return ColorSpace(transfer, primaries, peak)


def stated_peak(frame: av.VideoFrame) -> float:
    """Return the luminance of the brightest pixels, in cd/m2, by the frame's HDR metadata.

    That is the content's (MaxCLL), limited to its mastering display's. The side data are the
    structs AVContentLightMetadata and AVMasteringDisplayMetadata of FFmpeg.
    """
    stated = []
    content = side_data(frame, Type.CONTENT_LIGHT_LEVEL)
    if len(content) >= 8:
        stated.append(float(struct.unpack_from("=I", content)[0]))
    mastering = side_data(frame, Type.MASTERING_DISPLAY_METADATA)
    if len(mastering) >= 88:
        numerator, denominator, _, has_luminance = struct.unpack_from("=iiii", mastering, 72)
        if has_luminance and denominator:
            stated.append(numerator / denominator)
    peaks = [peak for peak in stated if peak > 0]
    return min(max(min(peaks, default=DEFAULT_PEAK), SDR_WHITE), MAX_PEAK)


def side_data(frame: av.VideoFrame, kind: Type) -> bytes:
    """Return the side data of this kind; nothing if there is none."""
    try:
        return bytes(frame.side_data[kind])  # type: ignore[literal-required]
    except KeyError:
        return b""


def has_alpha(frame: av.VideoFrame) -> bool:
    return any(component.is_alpha for component in frame.format.components) or (
        frame.format.has_palette
    )


def display_turn(frame: av.VideoFrame) -> Image.Transpose | None:
    """Return the transposition nearest to the frame's display matrix; None to leave it as it is.

    The matrix (a b u, c d v, x y w) puts pixel (p, q) at (a p + c q + x, b p + d q + y).
    """
    matrix = side_data(frame, Type.DISPLAYMATRIX)
    if len(matrix) < 36:
        return None
    a, b, _, c, d = struct.unpack_from("=5i", matrix)
    swaps = abs(b) + abs(c) > abs(a) + abs(d)
    return TURNS[(swaps, c < 0, b < 0) if swaps else (swaps, a < 0, d < 0)]
