"""Helios in SGLang: SGLANG_EXTERNAL_MODEL_PACKAGE=helios_serve.integrations.sglang.

SGLang imports this package once in each of its processes. The import registers our engine for
Helios checkpoints. It raises HeliosError for an unsupported release of SGLang.
"""

from importlib.metadata import version

from helios_serve.errors import HeliosError

VERIFIED = ("0.5.23",)
"""Releases that the tests run with. The internal interfaces that we use differ in others."""


def check_version() -> None:
    """Raise HeliosError unless a supported release of SGLang is installed."""
    installed = version("sglang")
    if installed not in VERIFIED:
        raise HeliosError(
            f"got SGLang {installed}, expected {' or '.join(VERIFIED)}, with which "
            "helios-serve's integration is tested"
        )


check_version()

from helios_serve.integrations.sglang.registration import register  # noqa: E402

register()
