"""Helios inside vLLM-Omni, which finds this package by its entry points.

`vllm-omni serve MODEL --omni --deploy-config $(helios-serve vllm-omni-config)` names everything
here. Nothing of vLLM-Omni is imported before it asks for it. See docs/vllm-omni.md.
"""

import sys
from importlib import import_module
from importlib.metadata import version
from typing import Any

from helios_serve.logger import logger, show_logs

SUPPORTED = "0.30"
PIPELINE = "helios_serve"
"""What a deploy config calls us. vLLM-Omni also looks for such names in those of models, and takes
what it finds: `helios` would take every Helios away from its own pipeline."""
LAZY = {"HeliosEngine": "engine", "HeliosExecutor": "executor"}


def register() -> None:
    """Make our pipeline known to vLLM-Omni; does nothing in a process of plain vLLM.

    May be called any number of times. A program that uses AsyncOmni directly calls it first.
    """
    if "vllm_omni" not in sys.modules:
        return
    try:
        check_version()
    except ImportError as error:
        show_our_logs()
        logger.warning("%s; Helios is not registered", error)
        return
    import_module(f"{__name__}.pipeline").register()


def check_version() -> None:
    """Raises ImportError, in one line, for a vLLM-Omni whose seams we do not know."""
    found = version("vllm-omni")
    if found.split("+")[0].split(".")[:2] != SUPPORTED.split("."):
        raise ImportError(f"got vLLM-Omni {found}, expected {SUPPORTED}.x for this helios-serve")


def show_our_logs() -> None:
    """Unless the program says itself what is done with them."""
    if not logger.hasHandlers():
        show_logs()


def __getattr__(name: str) -> Any:
    if name not in LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    check_version()
    return getattr(import_module(f"{__name__}.{LAZY[name]}"), name)
