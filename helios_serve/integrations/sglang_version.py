"""Which releases of SGLang we run in."""

from importlib.metadata import version

from helios_serve.errors import HeliosError

VERIFIED = ("0.5.23",)
"""Those that the tests have run with: what we plug into is not the same in others."""


def check_version() -> None:
    """Raises HeliosError."""
    installed = version("sglang")
    if installed not in VERIFIED:
        raise HeliosError(
            f"got SGLang {installed}, expected {' or '.join(VERIFIED)}, which is what "
            "helios-serve's integration was verified with"
        )
