"""Helios inside vLLM-Omni, which finds this package by its entry points.

`vllm-omni serve MODEL --omni --deploy-config $(helios-serve vllm-omni-config)` selects this
package. vLLM-Omni is not imported before it requests one of our classes. See docs/vllm-omni.md.
"""

import sys
from importlib import import_module
from importlib.metadata import version
from typing import Any

from helios_serve.logger import logger, show_logs

SUPPORTED = "0.30"
PIPELINE = "helios_serve"
"""Our pipeline's name in deploy configs.

vLLM-Omni also looks for pipeline names in model names: `helios` would replace its own pipeline for
every Helios model.
"""
LAZY = {"HeliosEngine": "engine", "HeliosExecutor": "executor"}


def register() -> None:
    """Register our pipeline with vLLM-Omni. Does nothing in a process of plain vLLM.

    It may be called repeatedly. Programs that use AsyncOmni directly must call it first.
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
    """Raise ImportError unless a supported version of vLLM-Omni is installed."""
    found = version("vllm-omni")
    if found.split("+")[0].split(".")[:2] != SUPPORTED.split("."):
        raise ImportError(f"got vLLM-Omni {found}, expected {SUPPORTED}.x for this helios-serve")


def show_our_logs() -> None:
    """Show our logs, unless the program has configured logging."""
    if not logger.hasHandlers():
        show_logs()


def __getattr__(name: str) -> Any:
    if name not in LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    check_version()
    return getattr(import_module(f"{__name__}.{LAZY[name]}"), name)
