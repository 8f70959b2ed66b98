"""SGLang's plugin (entry point `sglang.multimodal_gen.plugins`): Helios without a setting."""

import importlib

from helios_serve.errors import HeliosError
from helios_serve.logger import logger


def register_helios() -> None:
    """As if SGLANG_EXTERNAL_MODEL_PACKAGE named our package, which SGLang looks at only once and
    may have before it calls its plugins."""
    try:
        importlib.import_module("helios_serve.integrations.sglang")
    except HeliosError as error:
        logger.warning("%s; Helios is left to SGLang's own pipeline", error)
