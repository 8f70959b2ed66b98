"""Converts HDR (PQ, HLG) and wide-gamut colors to SDR in BT.709.

Transfer functions: ITU-R BT.2100. Tone curve: the EETF of ITU-R BT.2390, from the peak of the
source to SDR white. SDR white is placed at 203 cd/m2, the reference white of ITU-R BT.2408, and its
display has a gamma of 2.4 (ITU-R BT.1886).
"""

from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

SDR_WHITE = 203.0
"""Luminance of SDR white, in cd/m2."""
DEFAULT_PEAK = 1000.0
"""Peak of a source that does not state its own, in cd/m2; also the nominal peak of HLG."""
MAX_PEAK = 10_000.0
GAMMA = 2.4
CODES = 1 << 16
BT2020_LUMA = (0.2627, 0.6780, 0.0593)
TO_BT709 = {
    "bt2020": (
        (1.660491, -0.587641, -0.072850),
        (-0.124550, 1.132900, -0.008349),
        (-0.018151, -0.100579, 1.118730),
    ),
    "p3": (
        (1.224940, -0.224940, 0.0),
        (-0.042057, 1.042057, 0.0),
        (-0.019638, -0.078636, 1.098274),
    ),
}
"""Linear RGB in wide-gamut primaries to BT.709; the white point is D65 in all of them."""

Transfer = Literal["pq", "hlg", "sdr"]
Floats = NDArray[np.float32]
Array = NDArray[Any]


class ColorSpace(NamedTuple):
    """How the code values of a source are to be read.

    - `transfer`: its transfer function.
    - `primaries`: "bt2020", "p3" or "bt709".
    - `peak`: the luminance of its brightest pixels, in cd/m2.
    """

    transfer: Transfer
    primaries: str
    peak: float = DEFAULT_PEAK


def to_sdr(codes: NDArray[np.uint16], source: ColorSpace) -> NDArray[np.uint8]:
    """Convert full-range RGB codes (height, width, 3) to 8-bit BT.709.

    Colors that BT.709 lacks are clipped, as players do.
    """
    light = linear_codes(source.transfer)[codes]
    if source.transfer == "hlg":
        scene = light @ np.array(BT2020_LUMA, np.float32)
        light *= DEFAULT_PEAK * (scene ** np.float32(0.2))[..., None]  # the OOTF of BT.2100
    if source.transfer != "sdr":
        brightest = light.max(axis=-1)
        light *= tone_gain(brightest, source.peak)[..., None]
    light /= SDR_WHITE
    if source.primaries in TO_BT709:
        light = light @ np.array(TO_BT709[source.primaries], np.float32).T
    codes_out = (light.clip(0, 1) * (CODES - 1)).astype(np.uint16)
    return gamma_codes()[codes_out]


@lru_cache(maxsize=3)
def linear_codes(transfer: Transfer) -> Floats:
    """Return the light of each 16-bit code.

    cd/m2 for PQ and SDR; for HLG the light of the scene, up to 1.
    """
    code = np.linspace(0, 1, CODES)
    match transfer:
        case "pq":
            light = pq_to_light(code)
        case "hlg":
            a, b, c = 0.17883277, 0.28466892, 0.55991073
            light = np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)
        case "sdr":
            light = SDR_WHITE * code**GAMMA
    return light.astype(np.float32)


@lru_cache(maxsize=1)
def gamma_codes() -> NDArray[np.uint8]:
    """Return the 8-bit BT.709 code of each 16-bit value of linear light."""
    codes: NDArray[np.uint8] = (
        (np.linspace(0, 1, CODES) ** (1 / GAMMA) * 255).round().astype(np.uint8)
    )
    return codes


@lru_cache(maxsize=8)
def tone_curve(peak: float) -> tuple[Array, Array]:
    """Return cd/m2 of the source, up to 10,000, and the gains that bring them down to SDR white."""
    code = np.linspace(0, 1, 4096)
    top = float(light_to_pq(np.array(max(peak, SDR_WHITE))))
    white = float(light_to_pq(np.array(SDR_WHITE))) / top
    knee = 1.5 * white - 0.5
    share = (code / top).clip(0, 1)
    t = ((share - knee) / max(1 - knee, 1e-9)).clip(0, 1)
    bent = (
        (2 * t**3 - 3 * t**2 + 1) * knee
        + (t**3 - 2 * t**2 + t) * (1 - knee)
        + (3 * t**2 - 2 * t**3) * white
    )
    light = pq_to_light(code)
    mapped = pq_to_light(np.where(share < knee, share, bent) * top)
    gain = np.ones_like(light)
    np.divide(mapped, light, out=gain, where=light > 0)
    return light, gain


def tone_gain(brightest: Floats, peak: float) -> Floats:
    """Return the factor of each pixel by its brightest channel in cd/m2, which keeps its hue."""
    light, gain = tone_curve(peak)
    return np.interp(brightest, light, gain).astype(np.float32)


def pq_to_light(code: Array) -> Array:
    """The EOTF of PQ: code 0 to 1 -> cd/m2."""
    power = code ** (32 / 2523)
    base = np.maximum(power - 3424 / 4096, 0) / (2413 / 128 - 2392 / 128 * power)
    return np.asarray(MAX_PEAK * base ** (8192 / 1305))


def light_to_pq(light: Array) -> Array:
    """The inverse of `pq_to_light`."""
    power = (light / MAX_PEAK) ** (1305 / 8192)
    return np.asarray(
        ((3424 / 4096 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32)
    )
