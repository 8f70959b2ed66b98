"""Helios in SGLang: SGLANG_EXTERNAL_MODEL_PACKAGE=helios_serve.integrations.sglang.

SGLang imports this package once in each of its processes. Importing it has SGLang make videos of
Helios checkpoints with our engine; another release of SGLang than we know raises HeliosError.
"""

from helios_serve.integrations.sglang_version import check_version

check_version()

from helios_serve.integrations.sglang.registration import register  # noqa: E402

register()
