"""Helios in SGLang: SGLANG_EXTERNAL_MODEL_PACKAGE=helios_serve.integrations.sglang.

SGLang imports this package once in each of its processes. The import registers our engine for
Helios checkpoints. It raises HeliosError for an unsupported release of SGLang.
"""

from helios_serve.integrations.sglang_version import check_version

check_version()

from helios_serve.integrations.sglang.registration import register  # noqa: E402

register()
