"""A serving backend for long-video diffusion with Helios."""

from importlib.metadata import version

__version__ = version("helios-serve")
