"""A serving backend for long-video diffusion with Helios.

from helios_serve import Helios

Helios().generate("a dog runs over a green hill").save("dog.mp4")
"""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from helios_serve.offline import Helios

__all__ = ["Helios", "__version__"]

__version__ = version("helios-serve")


def __getattr__(name: str) -> Any:
    """Import `Helios` when it is first used: torch takes seconds to import."""
    if name == "Helios":
        from helios_serve.offline import Helios

        return Helios
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
