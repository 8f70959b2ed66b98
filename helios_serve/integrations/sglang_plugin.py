"""SGLang's plugin (entry point `sglang.multimodal_gen.plugins`), which needs no configuration."""

import importlib

from helios_serve.errors import HeliosError
from helios_serve.logger import logger


def register_helios() -> None:
    """Register Helios, as SGLANG_EXTERNAL_MODEL_PACKAGE would.

    SGLang reads that variable only once, possibly before it calls its plugins.
    """
    try:
        importlib.import_module("helios_serve.integrations.sglang")
    except HeliosError as error:
        logger.warning("%s; Helios uses SGLang's own pipeline", error)
